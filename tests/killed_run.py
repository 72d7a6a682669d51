"""A small run that reports each step and then its result, for tests that kill it."""

import hashlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_prune import LOSS, X, data, net

import secateurs as sc

torch.set_num_threads(1)
result = sc.prune(
    net(), X, train=data(), loss=LOSS, budget={"macs": 0.3}, step=2, updates=20, final=60,
    evaluate=lambda model: float(model[8].weight.abs().sum()), out=sys.argv[1], resume=True,
    progress=False, callbacks=[lambda record, model: print(record["step"], flush=True)],
)  # fmt: skip
state = b"".join(t.numpy().tobytes() for t in result.model.state_dict().values())
print(result.plan.to_json(), result.history[-1]["metric"], hashlib.sha256(state).hexdigest())

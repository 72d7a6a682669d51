"""Trace and plan language models of 7 and 70 billion parameters by their shapes alone.

The models stand on the meta device: they have shapes and no values. A third network, of one billion
parameters, is real, and shows what a trace needs beside the model. Each has a process of its own,
whose peak memory is the kernel's figure for it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from vision import torchvision_models

import secateurs as sc
from secateurs.tables import render

SHAPES: dict[str, dict[str, int]] = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
GIB = 1 << 30
COLUMNS = (
    "network", "device", "parameters", "groups", "trace", "processor", "before", "peak", "plan",
)  # fmt: skip


def build(name: str, *, real: bool) -> torch.nn.Module:
    """A Llama of this shape, its values are zeros if it is real."""
    torchvision_models()  # transformers imports torchvision
    import transformers

    config = transformers.LlamaConfig(vocab_size=32000, **SHAPES[name])
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    return model.to_empty(device="cpu").apply(_clear) if real else model


def _clear(module: torch.nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data.zero_()


def peak() -> int:
    """The largest memory that this process has held, in bytes (Linux gives KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, real: bool, out: Any) -> None:
    """Trace in this process, then plan to cut a quarter of the neurons of the first layer."""
    model = build(name, real=real)
    tokens = torch.zeros(1, 8, dtype=torch.long, device="cpu" if real else "meta")
    gc.collect()
    before, start, busy = peak(), time.perf_counter(), time.process_time()
    graph = sc.trace(model, {"input_ids": tokens})
    times = (f"{time.perf_counter() - start:.1f} s", f"{time.process_time() - busy:.1f} s")
    after, start = peak(), time.process_time()
    group = graph["model.layers.0.mlp.gate_proj"]
    graph.plan({group.name: range(group.size // 4)})
    planned = f"{time.process_time() - start:.2f} s"
    count = sum(p.numel() for p in model.parameters())
    sizes = (f"{before / GIB:.2f} GiB", f"{after / GIB:.2f} GiB")
    device = "CPU" if real else "meta"
    out.put((name, device, f"{count / 1e9:.2f}e9", str(len(graph)), *times, *sizes, planned))


def main(out: Path = Path("docs/results/large.md"), runs: int = 3) -> None:
    """Measure the three networks and write the page."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, real in (("7B", False), ("70B", False), ("1B", True)):
        for _ in range(runs):
            queue = context.Queue()
            process = context.Process(target=measure, args=(name, real, queue))
            process.start()
            rows.append(queue.get(timeout=600))
            process.join()
            print(rows[-1], flush=True)
    out.write_text(page(rows, runs))


def page(rows: list[tuple[str, ...]], runs: int) -> str:
    """The results as a page of the documentation."""
    machine = f"{torch.get_num_threads()} thread, torch {version('torch')}, {platform.machine()}"
    return f"""# Large language models by their shapes

`make large` traces Llamas of 7 and 70 billion parameters on the meta device, where a tensor has a
shape and no values, and plans to cut a quarter of the neurons of the first layer: a model that fits
no machine at hand can be planned on any. The third network has its values; what a trace adds to the
memory of the model is the difference of the peak and what was before. {runs} run(s), each in a
process of its own ({machine}; transformers {version("transformers")}).

```text
{render("", COLUMNS, rows).strip()}
```

`trace` is its time on the wall, which a busy machine stretches; `processor` is its processor time,
and so is that of the plan. `before` is the peak memory of the process when the model stands, with
PyTorch and transformers imported; `peak` the same after the trace.
"""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)

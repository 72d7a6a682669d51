"""Every network of the coverage table: random weights, and the smallest input that runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coverage_nets import NETS, WORDS
from torch import Tensor, nn
from vision import no_init, torchvision_models

LIST = Path(__file__).with_name("coverage.txt")


@dataclass(frozen=True)
class Sample:
    """A network in eval mode, and what it runs on.

    Attributes:
        model: with random weights, in float32.
        inputs: as `secateurs.trace` takes them; a batch of two where the network allows it.
        targets: what a network that returns its own losses in training mode is given besides.
    """

    model: nn.Module
    inputs: Any
    targets: Any = None


def names() -> list[str]:
    """source.name of every network, in the order of the list."""
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [line for line in lines if line]


def sample(name: str, seed: int = 0) -> Sample:
    """One network of the list, the same every time."""
    source, _, rest = name.partition(".")
    torch.manual_seed(seed)
    with no_init():
        made = SOURCES[source](rest)
    randomise(made.model, seed)
    made.model.eval()
    return made


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and running statistic: ones, zeros and tiny scales hide errors.

    What multiplies (a norm's weight, a layer scale, a variance) lies between 0.5 and 1.5, what is
    added between −0.5 and 0.5; matrices and kernels are uniform with variance 1 / fan-in.
    """
    draw = torch.Generator().manual_seed(seed)
    running = {n: b for n, b in model.named_buffers() if "running_" in n}
    with torch.no_grad():
        for name, tensor in {**dict(model.named_parameters()), **running}.items():
            vector = sum(size > 1 for size in tensor.shape) < 2
            if vector and re.search(r"weight|running_var|gamma|scale|gain|\bg$", name):
                tensor.uniform_(0.5, 1.5, generator=draw)
            else:
                bound = 0.5 if vector else (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=draw)


# ---------------------------------------------------------------------- plain
def plain(name: str) -> Sample:
    make, inputs = NETS[name]
    return Sample(make(), inputs())


# ---------------------------------------------------------------------- torchvision
def tv(name: str) -> Sample:
    models = torchvision_models()
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    where = models
    for room in (models.detection, models.segmentation, models.video):
        where = room if name in dir(room) else where
    if where is models.detection:
        return detection(getattr(where, name), name)
    if where is models.segmentation:
        options["weights_backbone"] = None
    shape = {
        "inception_v3": (3, 299, 299), "alexnet": (3, 64, 64), "vit_b_16": (3, 224, 224),
        "maxvit_t": (3, 224, 224), "r3d_18": (3, 4, 32, 32), "swin3d_t": (3, 4, 64, 64),
    }.get(name, (3, 64, 64))  # fmt: skip
    return Sample(getattr(where, name)(**options), torch.randn(2, *shape))


def detection(make: Callable[..., nn.Module], name: str) -> Sample:
    """A detector, with few candidates: two images; its own losses in training mode."""
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if "rcnn" in name:
        options |= {"rpn_score_thresh": 0.0, "box_score_thresh": 0.0}
        for when in ("pre_nms_top_n_train", "post_nms_top_n_train", "pre_nms_top_n_test",
                     "post_nms_top_n_test"):  # fmt: skip
            options[f"rpn_{when}"] = 50
    size = 320 if "320" in name else 96
    model = make(**options)
    if size == 96:
        model.transform.min_size, model.transform.max_size = (size,), size
    boxes = torch.tensor([[8.0, 8.0, 48.0, 56.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([label])} for label in (1, 2)]
    return Sample(model, ([torch.rand(3, size, size) for _ in targets],), targets)


# ---------------------------------------------------------------------- timm
def timm(name: str) -> Sample:
    torchvision_models()  # timm imports torchvision
    import timm

    model = timm.create_model(name, pretrained=False)
    size = model.default_cfg["input_size"][-1]
    if not re.search(FIXED, name):
        size = min(size, 96 if "inception_resnet" in name else 64)
    return Sample(model, torch.randn(2, 3, size, size))


# Networks whose image size is part of their weights or of their windows.
FIXED = (
    r"vit|deit|beit|swin|maxvit|mixer|resmlp|pit|eva|twins|efficientformer|botnet|halonet|lambda"
    r"|convit|davit|visformer|tresnet"
)


# ---------------------------------------------------------------------- transformers
WIDTH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**WIDTH, "intermediate_size": 128, "vocab_size": WORDS}
DECODER = {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 64}
SHORT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": WORDS, "n_positions": 64}
IMAGES = {"image_size": 32}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
SPEECH = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "vocab_size": WORDS, "max_source_positions": 10, "num_mel_bins": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip

# name: class, its configuration
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", ENCODER),
    "bert_cls": ("BertForSequenceClassification", ENCODER),
    "distilbert": (
        "DistilBertModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": WORDS},
    ),
    "gpt2": ("GPT2LMHeadModel", SHORT),
    "llama_gqa": ("LlamaForCausalLM", DECODER),
    "llama_mha": ("LlamaForCausalLM", {**DECODER, "num_key_value_heads": 4}),
    "mamba": ("MambaForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "mistral": ("MistralForCausalLM", DECODER),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 4}),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 16}),
    "swin": (
        "SwinForImageClassification",
        {
            **IMAGES, "patch_size": 2, "embed_dim": 64, "depths": [2, 2], "num_heads": [4, 8],
            "window_size": 4,
        },
    ),
    "t5": ("T5ForConditionalGeneration", {**T5, "vocab_size": WORDS}),
    "vit": (
        "ViTForImageClassification",
        {**WIDTH, **IMAGES, "intermediate_size": 128, "patch_size": 8},
    ),
    "whisper": ("WhisperForConditionalGeneration", SPEECH),
}  # fmt: skip


def hf(name: str) -> Sample:
    torchvision_models()  # transformers looks for torchvision
    import transformers

    kind, settings = TRANSFORMERS[name]
    made = getattr(transformers, kind)
    config = made.config_class(**{"vocab_size": WORDS, **settings})
    model = made(config)
    words = torch.randint(3, WORDS, (2, 9))
    takes = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in takes:
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32)
    if "input_features" in takes:
        inputs["input_features"] = torch.randn(2, 8, 20)
    if "input_ids" in takes:
        inputs["input_ids"] = words
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = words
    return Sample(model, inputs)


SOURCES: dict[str, Callable[[str], Sample]] = {"hf": hf, "plain": plain, "timm": timm, "tv": tv}

"""'Make them fast and small', in a form that runs in minutes: transfer a VGG, prune its maps.

The widely read recipe takes VGG-16, trained on ImageNet, transfers it to a task of two classes and
prunes its feature maps by the Taylor criterion. Here the VGG-16 has batch normalisation and a
quarter of every width, it is trained on eight classes of CIFAR-10, and the task is the other two:
automobiles and trucks.
"""

from __future__ import annotations

import time

import cifar
import torch
import typer
from safetensors.torch import save_file
from tasks import Images, count_macs, fine_tune
from torch import Tensor, nn
from versus_table import markdown

import secateurs as sc
from secateurs.atomic import write_text
from secateurs.latency import latency
from secateurs.process.stream import Stream

PLAN = (16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 128, 128, 128, "M", 128, 128, 128)
HIDDEN = 512
TASK = ("automobile", "truck")
BATCH = 64  # of the timing


class VGG16(nn.Module):
    """VGG-16 with batch normalisation, a quarter as wide, for images of 32².

    Source: Simonyan and Zisserman (2014), configuration D; the last pooling is left out.
    """

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in PLAN:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 4, HIDDEN), nn.ReLU(), nn.Dropout(),
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(),
            nn.Linear(HIDDEN, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 32, 32)."""
        return self.classifier(self.features(images).flatten(1))


def classes(split: str, names: tuple[str, ...]) -> Images:
    """The images of some classes, numbered anew."""
    pixels, labels = cifar.load(split)
    wanted = torch.tensor([cifar.CLASSES.index(name) for name in names])
    matches = labels[:, None] == wanted
    chosen = matches.any(1)
    found = matches[chosen].long().argmax(1)
    return Images(pixels[chosen], found, cifar.MEAN, cifar.STD, shift=4, flip=True)


def transferred(updates: int, transfer: int, seed: int) -> nn.Module:
    """Trained on eight classes, then, with a new last layer, on the two of the task."""
    torch.manual_seed(seed)
    others = tuple(name for name in cifar.CLASSES if name not in TASK)
    model = VGG16(len(others))
    fine_tune(model, Stream(classes("train", others), seed).take(updates), updates, 0.05)
    model.classifier[-1] = nn.Linear(HIDDEN, len(TASK))
    fine_tune(model, Stream(classes("train", TASK), seed).take(transfer), transfer, 0.02)
    return model.eval()


def document(
    before: nn.Module,
    result: sc.PruneResult,
    errors: list[float],
    sizes: list[int],
    transfer: int,
) -> str:
    """The page, in Markdown."""
    example = torch.zeros(1, 3, 32, 32)
    macs = [count_macs(model, example) for model in (before, result.model)]
    maps = [
        sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
        for model in (before, result.model)
    ]
    times = latency([before, result.model], torch.randn(BATCH, 3, 32, 32))
    rows = [
        ("file", *(f"{size / 1e6:.2f} MB" for size in sizes), _ratio(sizes), "538 → 150 MB"),
        ("time of a batch", *times, _ratio([t.median for t in times]), "0.78 → 0.28 s"),
        ("accuracy", *(f"{100 - e:.1f}%" for e in errors), "", "98.7 → 97.5%"),
        ("feature maps", *(f"{m:,}" for m in maps), _ratio(maps), ""),
        ("MACs per image", *(f"{m:,}" for m in macs), _ratio(macs), ""),
    ]
    return f"""# Make them fast and small

`make vgg` runs this and writes the page. The widely read recipe transfers a VGG-16, trained on
ImageNet, to a task of two classes, and prunes its feature maps by the Taylor criterion. This is a
reduced form: a VGG-16 with batch normalisation and a quarter of every width, trained on the images
of eight classes among the first {cifar.TRAIN:,} training images of CIFAR-10, transferred to the
other two ({" and ".join(TASK)}), then pruned by
`secateurs.prune(…, criterion="taylor", only="features.*", cost_power=0.5)`.

{markdown(("", "before", "after", "ratio", "the recipe's own figures"), rows)}

Time is for a batch of {BATCH} on the CPU, threads: {torch.get_num_threads()}; the median, and the
quartiles in brackets. Accuracy is on the 2,000 test images of the two classes; the network before
had {transfer:,} updates on them, the pruned one the updates of the pruning beside. The hidden
layers of the classifier are not pruned, as in the recipe. Its figures are quoted as published:
another network, task and machine, so compare the ratios only.
torch {torch.__version__}.
"""


def _ratio(pair: list) -> str:
    return f"{pair[0] / pair[1]:.1f}×"


def main(
    macs: float = typer.Option(0.15, help="Fraction of the multiply-accumulates to keep."),
    training: int = typer.Option(1200, help="Weight updates on eight classes."),
    transfer: int = typer.Option(800, help="Weight updates on the two classes, before pruning."),
    final: int = typer.Option(400, help="Weight updates after the last removal."),
    seed: int = 0,
    out: str = typer.Option("", help="The page to write; it is printed in any case."),
    folder: str = typer.Option("runs/vgg", help="Where to write the pruned network."),
) -> None:
    """Train, transfer, prune, and write the table."""
    torch.set_flush_denormal(True)
    started = time.perf_counter()
    before = transferred(training, transfer, seed)
    train, test = (classes(split, TASK) for split in ("train", "test"))
    batches = Stream(train, seed + 1)

    def tune(model: nn.Module, updates: int) -> None:
        fine_tune(model, batches.take(updates), updates, 0.02)

    result = sc.prune(
        before,
        torch.zeros(1, 3, 32, 32),
        train=train,
        budget={"macs": macs},
        loss=nn.CrossEntropyLoss(reduction="none"),
        only="features.*",
        cost_power=0.5,
        evaluate=lambda model: 100 - test.error(model),
        metric="accuracy",
        finetune=tune,
        final=final,
        seed=seed,
    )
    print(result)
    pruned = result.save(folder) / "model.safetensors"
    whole = pruned.with_name("before.safetensors")
    save_file(before.state_dict(), whole)
    sizes = [path.stat().st_size for path in (whole, pruned)]
    errors = [test.error(model) for model in (before, result.model)]
    page = document(before, result, errors, sizes, transfer)
    print(page, f"{time.perf_counter() - started:.0f} s", sep="\n")
    if out:
        write_text(out, page)


if __name__ == "__main__":
    typer.run(main)

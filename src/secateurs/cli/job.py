"""What the commands that train share: their configuration, model and data, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer
from pydantic import BaseModel

from ..errors import FileError
from .config import Config, DataSection, make_config
from .datasets import evaluation, train_batches
from .keras_files import is_keras_file, keras_data
from .models import build, example_inputs, is_saved
from .objects import find_loss, importable
from .saved import CONFIG, ZOOS, original_of

if TYPE_CHECKING:
    from torch import nn

    from ..plan import Plan


class Result(Protocol):
    """What a run gives back, as far as it is written down here."""

    model: nn.Module
    history: list[dict[str, Any]]

    def save(self, directory: str | Path) -> Path: ...


def configured(
    file: Path | None,
    source: Mapping[str, Any],
    how: tuple[str, type[BaseModel]],
    values: Mapping[str, Any],
    **more: Any,
) -> Config:
    """The configuration of a command: a file, if there is one, with the flags over it.

    What it names can be imported from then on: from beside the file, and from here.

    Args:
        file: of the configuration.
        source: the flags of [model].
        how: name and section of the command's own settings.
        values: the flags of [data] and of the command's own section; an empty list is not given.
        **more: other keys; a `budget` is asked for if it is among them.
    """
    name, section = how
    given = {
        "model": source,
        "data": {key: values[key] for key in DataSection.model_fields},
        name: {key: values[key] for key in section.model_fields if values[key] != []},
        **more,
    }
    config = make_config(file, given, budget="budget" in more)
    importable(([file.parent] if file else []) + [Path.cwd()])
    return config


def opened(
    config: Config, seed: int, data_as: str = "train"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model of a configuration, its example inputs and its data as the verbs take them.

    Args:
        config: of the command.
        seed: of random weights.
        data_as: what the verb calls the data.

    Returns:
        Arguments by place, and by name.
    """
    source, data = config.model, config.data
    network = build(source.path, source.weights, seed, source.original)
    if source.weights is None and source.path.partition(":")[0] in ZOOS:
        typer.echo("note: the weights are random; --weights takes trained ones", err=True)
    inputs = example_inputs(source.path, network, source.input_shape, source.inputs)
    if is_keras_file(source.path):
        arrays, named = keras_data(data)
        return (network, *arrays), {"example_inputs": inputs, **named}
    return (network, inputs), {
        "loss": find_loss(str(data.loss)),
        data_as: train_batches(data, inputs),
        "evaluate": evaluation(data, inputs),
        "metric": data.metric_name,
        "mode": data.mode,
    }


def writable(folder: Path, *, replace: bool) -> None:
    """Make the output directory now: hours later is too late to learn that it cannot be made.

    Raises:
        FileError: it cannot be made, or holds a result already.
    """
    from ..files.store import KERAS, WEIGHTS

    if not replace and any((folder / name).exists() for name in (WEIGHTS, KERAS)):
        raise FileError(f"{folder} holds a result already; give another --out, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write to {folder}: {error}; give another --out") from error


def keep(config: Config, result: Result, plan: Plan, records: Iterable[str]) -> None:
    """Write a result, and the configuration that made it.

    Args:
        config: its `out` is the folder.
        result: it saves itself; over a saved folder the plan of that one comes first, so that
            the new folder stands by itself: from the class, not from the older folder.
        plan: what the run removed.
        records: the page, and files of an older result that tell of another network then.
    """
    from .. import Plan, save
    from ..atomic import write_text
    from ..files.store import PLAN

    source, (page, *others) = config.model, records
    if is_saved(source.path):
        before = Plan.load(Path(source.path) / PLAN)
        folder = save(result.model, before.then(plan), config.out, history=result.history)
        origin = original_of(source.path, source.original)
        config = config.model_copy(update={"model": source.model_copy(update={"original": origin})})
        stale = [page, *others]
    else:
        folder = result.save(config.out)
        stale = [page]
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    write_text(folder / CONFIG, config.model_dump_json(indent=1, by_alias=True))

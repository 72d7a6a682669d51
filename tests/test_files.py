"""Files that are broken, hostile or half written: refused by name, and nothing is changed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz import changes, readers, search
from tests.fuzz.readers import READERS, Reader, kinds_here, net
from tests.support import snapshot

import secateurs as sc
from secateurs.atomic import parse_json, write_text, write_with
from secateurs.cli.config import make_config
from secateurs.errors import FileError, SecateursError
from secateurs.files.store import load_tensors, save_tensors
from secateurs.process.checkpoint import Checkpoint

MODEL = net()
PLAN = sc.trace(MODEL, readers.X).plan({"0": [1, 2]})
KB = changes.KB


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole file of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    readers.whole(folder, kinds_here())
    return folder


def refused(call: Callable[[], object]) -> None:
    """A typed error, and the model as it was."""
    before = snapshot(MODEL)
    with pytest.raises(SecateursError):
        call()
    assert snapshot(MODEL) == before


# ---------------------------------------------------------------------- the search
def test_fifty_broken_files_meet_typed_errors_only() -> None:
    tally = search.fuzz(50, 0, kinds_here())
    assert tally.failures == []
    assert tally.refused.total() + tally.valid.total() == 50
    assert tally.refused.total() >= 40


def _evaluates(folder: Path, model: torch.nn.Module) -> None:
    os.system("true")


def _writes(folder: Path, model: torch.nn.Module) -> None:
    (folder.parent / "xyz").write_text("")


def _halves(folder: Path, model: torch.nn.Module) -> None:
    model[0].out_channels = 3
    raise FileError("too late")


def _lets_through(folder: Path, model: torch.nn.Module) -> None:
    json.loads((folder / "plan.json").read_text())["groups"]["0"].append(1)


@pytest.mark.parametrize("careless", [_evaluates, _writes, _halves, _lets_through])
def test_the_search_finds_a_careless_reader(careless: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(READERS, "careless", Reader("plan.json", careless, changes.JSON))
    assert search.fuzz(20, 0, ["careless"]).failures


# ---------------------------------------------------------------------- every place in a file
SMALL = [kind for kind in kinds_here() if READERS[kind].name.endswith((".json", ".toml"))]


def truncated(kind: str, folder: Path, ends: Callable[[int], range]) -> None:
    """Every one of these beginnings of a file is refused, and the model stays as it was."""
    reader, before = READERS[kind], snapshot(MODEL)
    path = folder / reader.name
    data = path.read_bytes()
    try:
        for end in ends(len(data)):
            path.write_bytes(data[:end])
            with pytest.raises(SecateursError):
                reader.read(folder, MODEL)
    finally:
        path.write_bytes(data)
    assert snapshot(MODEL) == before


@pytest.mark.parametrize("kind", [k for k in SMALL if k not in ("toml", "record")])
def test_truncation_at_every_byte_of_a_small_file(kind: str, whole: Path) -> None:
    truncated(kind, whole, range)


@pytest.mark.parametrize("kind", [k for k in kinds_here() if k not in SMALL])
def test_truncation_at_every_kilobyte(kind: str, whole: Path) -> None:
    truncated(kind, whole, lambda size: range(0, size, KB))


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors"])
def test_truncation_and_a_flipped_bit_anywhere_in_tensors(name: str, whole: Path, tmp_path) -> None:
    """The digest covers names, shapes, values and metadata, so that no bit flips unseen."""
    data = (whole / name).read_bytes()
    path = tmp_path / name
    rng = random.Random(0)
    for at in range(0, len(data), 1 + len(data) // 1000):
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        for broken in (data[:at], bytes(flipped)):
            path.write_bytes(broken)
            with pytest.raises(FileError):
                load_tensors(path)
    path.write_bytes(data)
    load_tensors(path)


# ---------------------------------------------------------------------- by Hypothesis
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(["format", "groups", "sizes", "tensors", "shape", "removed", "0"]) | st.text(
    max_size=4
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_no_json_is_a_plan_by_chance(tree: Any) -> None:
    refused(lambda: sc.Plan.from_json(json.dumps(tree)))


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_is_a_plan_by_chance(text: str) -> None:
    refused(lambda: sc.Plan.from_json(text))


@given(st.sampled_from(sorted(PLAN.to_dict())), TREES)
def test_a_plan_with_a_foreign_part_is_refused_or_applies(key: str, tree: Any) -> None:
    before = snapshot(MODEL)
    try:
        plan = sc.Plan.from_json(json.dumps({**PLAN.to_dict(), key: tree}))
        sc.apply(MODEL, plan)
    except SecateursError:
        pass
    assert snapshot(MODEL) == before


@settings(max_examples=50)
@given(place=st.integers(0, 9), tree=TREES)
def test_a_checkpoint_with_a_foreign_part_is_refused_or_whole(
    place: int, tree: Any, whole: Path
) -> None:
    tensors, metadata = load_tensors(whole / "checkpoint.safetensors")
    record = json.loads(metadata["checkpoint"])
    record[sorted(record)[place % len(record)]] = tree
    folder = whole / "changed"
    save_tensors(folder / "checkpoint.safetensors", tensors, {"checkpoint": json.dumps(record)})
    with contextlib.suppress(SecateursError):
        assert isinstance(Checkpoint.load(folder), Checkpoint)


@settings(max_examples=50)
@given(st.text() | TREES.map(lambda tree: f"prune = {json.dumps(tree)}\nlr = 3"))
def test_a_configuration_of_anything_is_refused(text: str) -> None:
    path = Path(os.environ["PYTEST_TMP"]) / "run.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(lambda: make_config(path, {}))


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_bytes_are_no_tensors(data: bytes) -> None:
    path = Path(os.environ["PYTEST_TMP"]) / "x.safetensors"
    for content in (data, changes.joined(data, b"\0" * 16)):
        path.write_bytes(content)
        with pytest.raises(FileError):
            load_tensors(path)


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for tests that Hypothesis runs many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_TMP", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": {"b": 1, "c": 1, "b": 1}}', "the key 'b' stands twice"),
        ("[1e400]", "1e400 is no finite number"),
        ("[NaN]", "NaN is no finite number"),
        ("9" * 5000, "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_is_read_strictly(text: str, says: str) -> None:
    with pytest.raises(FileError, match=says):
        parse_json(text, "the file")
    assert parse_json('{"a": [1, 2.5, null]}', "the file") == {"a": [1, 2.5, None]}


# ---------------------------------------------------------------------- in place of a file
def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _passwords(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("put", [Path.mkdir, _pipe, _link_to_itself, _device, _passwords])
@pytest.mark.parametrize("kind", [k for k in kinds_here() if k not in ("image", "record")])
def test_what_is_no_file_is_refused(put: Any, kind: str, whole: Path, monkeypatch) -> None:
    """A pipe would be waited for, and a device has no end; foreign text is not shown."""
    reader = READERS[kind]
    path = whole / reader.name
    data = path.read_bytes()
    path.unlink()
    put(path)
    try:
        with pytest.raises(SecateursError) as caught, search.watched(search.WATCH, whole):
            reader.read(whole, net())
        assert "root:" not in str(caught.value)
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(data)


def test_a_link_is_read_through_and_never_written_through(tmp_path: Path) -> None:
    sc.save(sc.apply(MODEL, PLAN), PLAN, tmp_path / "a")
    outside = tmp_path / "outside.json"
    (tmp_path / "a" / "plan.json").rename(outside)
    (tmp_path / "a" / "plan.json").symlink_to(outside)
    before = outside.read_bytes()
    sc.load(tmp_path / "a", net())
    other = sc.trace(MODEL, readers.X).plan({"4": [0]})
    sc.save(sc.apply(MODEL, other), other, tmp_path / "a")
    assert outside.read_bytes() == before
    assert not (tmp_path / "a" / "plan.json").is_symlink()


def test_a_plan_and_weights_of_two_saves_do_not_load(tmp_path: Path) -> None:
    """Of the same shapes: only the digest tells them apart."""
    graph = sc.trace(MODEL, readers.X)
    for name, units in (("a", [1, 2]), ("b", [3, 4])):
        plan = graph.plan({"0": units})
        sc.save(sc.apply(MODEL, plan), plan, tmp_path / name)
    (tmp_path / "a" / "plan.json").write_bytes((tmp_path / "b" / "plan.json").read_bytes())
    model = net()
    before = snapshot(model)
    with pytest.raises(FileError, match=r"not the plan that model\.safetensors was saved with"):
        sc.load(tmp_path / "a", model)
    assert snapshot(model) == before


# ---------------------------------------------------------------------- writing
def _save(folder: Path, plan: sc.Plan) -> None:
    sc.save(sc.apply(MODEL, plan), plan, folder, history=[{"step": len(plan)}])


def _checkpoint(folder: Path, plan: sc.Plan) -> None:
    state = {name: t * len(plan) for name, t in MODEL.state_dict().items()}
    Checkpoint(len(plan), plan, state, {}, {}, (0, 0), [{}], {}, {}).save(folder)


WRITERS: dict[str, Callable[[Path, sc.Plan], object]] = {
    "plan": lambda folder, plan: plan.save(folder / "plan.json"),
    "folder": _save,
    "checkpoint": _checkpoint,
    "tensors": lambda f, p: save_tensors(f / "x", {"x": torch.ones(9999 + len(p))}),
    "text": lambda folder, plan: write_text(folder / "x.toml", "x" * (9999 + len(plan))),
}
FIRST, SECOND = PLAN, sc.trace(MODEL, readers.X).plan({"0": [0, 3, 4], "4": [5]})


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds, less what a kill may leave: hidden files that nobody reads."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.fixture
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, bytes]]:
    write = WRITERS[request.param]
    write(tmp_path, FIRST)
    return write, contents(tmp_path)


every_writer = pytest.mark.parametrize("written", WRITERS, indirect=True)


@every_writer
@pytest.mark.parametrize("room", [0, 100, 4096])
def test_a_disk_without_room_leaves_what_was_there(
    written: tuple[Any, dict[str, bytes]], room: int, tmp_path: Path
) -> None:
    """The system refuses to let a file grow beyond so many bytes."""
    write, before = written
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    quiet = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        if room < max(map(len, before.values())):
            with pytest.raises(FileError, match="nothing there was changed"):
                write(tmp_path, SECOND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write(tmp_path, SECOND)
    assert contents(tmp_path) != before


@every_writer
def test_a_full_disk_at_the_last_moment(written: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write, before = written
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device; nothing there was changed"):
        write(tmp_path, SECOND)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child writes and dies
@every_writer
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_leaves_what_was_there(written: Any, moment: str, tmp_path: Path) -> None:
    write, before = written
    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write(tmp_path, SECOND)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert contents(tmp_path) == before
    write(tmp_path, SECOND)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_kill_between_two_files_of_a_folder_is_noticed(
    done: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """The folder is what it was, or is refused; it never gives a network that nobody saved."""
    _save(tmp_path, FIRST)
    old, replace, calls = contents(tmp_path), os.replace, iter(range(9))

    def dies(a: Path, b: Path) -> None:
        if next(calls) == done:
            raise OSError(errno.EIO, "died here")
        replace(a, b)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(FileError, match="died here"):
        _save(tmp_path, SECOND)
    model, before = net(), snapshot(net())
    new = contents(tmp_path)
    if new["plan.json"] == old["plan.json"]:
        assert sc.load(tmp_path, model)[0].out_channels == 4
    else:
        with pytest.raises(FileError, match="one of the two was damaged, edited or replaced"):
            sc.load(tmp_path, model)
        assert {k: v for k, v in snapshot(model).items() if "bits" in k} == {
            k: v for k, v in before.items() if "bits" in k
        }


def test_files_are_as_readable_as_others_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "text", "")
    save_tensors(tmp_path / "tensors", {"x": torch.ones(1)})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_with(tmp_path / "new" / "x", fails)
    assert list((tmp_path / "new").iterdir()) == []

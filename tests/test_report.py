"""From a run to its record, and from the record to page, figures and text."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import cli_fixtures
from tests.pages import (
    Element,
    check_read_aloud,
    check_whole,
    contrast_ratio,
    mixed,
    read_page,
    theme_colours,
)
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app
from secateurs.errors import FileError, MissingExtraError
from secateurs.process.result import PruneResult
from secateurs.report import content, extra, words
from secateurs.report.charts import draw
from secateurs.report.figures import write_figures
from secateurs.report.page import render_page
from secateurs.report.record import Layer, Record, Run, Step
from secateurs.slices import complement

STATIC = Path(extra.__file__).parent
X = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def result() -> PruneResult:
    return sc.prune(
        cli_fixtures.build(), X, train=cli_fixtures.train(), budget={"macs": 0.5, "params": 0.6},
        loss=cli_fixtures.loss, evaluate=cli_fixtures.accuracy, metric="accuracy",
        step=4, updates=3, final=3, latency=True, progress=False, seed=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(result: PruneResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result.save(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return Record.load(folder)


@pytest.fixture(scope="module")
def page(record: Record) -> Element:
    return read_page(render_page(record))


def whole(text: str) -> int:
    return int(text.replace(",", ""))


# ---------------------------------------------------------------------- the record
def test_the_record_reads_back_as_it_was(result: PruneResult, record: Record) -> None:
    kept = result.record()
    assert record.run == kept.run
    assert record.history == kept.history
    assert record.plan == kept.plan
    assert record.importance.keys() == kept.importance.keys()
    for name, values in kept.importance.items():
        np.testing.assert_array_equal(record.importance[name], values)


def test_the_record_says_what_the_trace_found(record: Record) -> None:
    graph = sc.trace(cli_fixtures.build(), X)
    network = record.run.network
    axes = {(a.tensor, a.dim, a.size, why) for why, held in network.frozen.items() for a in held}
    assert axes == {(a.tensor, a.dim, a.size, a.reason) for a in graph.frozen}
    assert [(g.name, g.size) for g in network.groups] == [(g.name, g.size) for g in graph.groups]
    own = dict(cli_fixtures.build().named_parameters())
    sizes = {f"{name}.weight": len(own[f"{name}.weight"]) for name in "conv1 conv2 fc1 fc2".split()}
    assert {layer.tensor: layer.size for layer in network.layers} == sizes
    assert network.bytes == sum(4 * tensor.numel() for tensor in own.values())
    assert network.inputs == ["float32 (1, 1, 8, 8)"]


def test_importance_is_known_for_what_was_there_at_each_step(result: PruneResult) -> None:
    gone = dict.fromkeys(result.importance, 0)
    for i, step in enumerate(s for s in result.history if s["removed"]):
        for name, values in result.importance.items():
            assert np.isnan(values[i]).sum() == gone[name]
            gone[name] += step["removed"].get(name, 0)
    for name, values in result.importance.items():  # the last row are the scores as returned
        np.testing.assert_allclose(values[-1][np.isfinite(values[-1])], result.scores[name])
        kept = complement(result.plan.groups.get(name, []), values.shape[1])
        assert np.isfinite(values[-1][kept]).all()
    assert sum(gone.values()) == len(result.plan) > 0


def test_what_the_floor_took_back_is_not_in_the_record() -> None:
    given = iter([1.0, 1.0, 1.0, 0.0])
    result = sc.prune(
        cli_fixtures.build(), X, train=cli_fixtures.train(), budget={"macs": 0.1}, floor=0.5,
        loss=cli_fixtures.loss, evaluate=lambda model: next(given, 1.0), step=2, updates=0,
        final=0, progress=False,
    )  # fmt: skip
    assert result.stopped == "floor"
    assert {len(values) for values in result.importance.values()} == {2}
    result.record().check("here")


# ---------------------------------------------------------------------- the page
def test_the_page_says_what_the_record_says(page: Element, record: Record) -> None:
    run = record.run
    [table] = page.all("table", class_="facts")
    facts = {row[0]: row[1:] for row in table.rows()}
    for name, measure in (("parameters", "params"), ("MACs", "macs"), ("units", "units")):
        before, after, _ = facts[name]
        assert whole(before) == getattr(run.before, measure)
        assert whole(after) == getattr(run.after, measure)
    assert whole(facts["FLOPs (2 · MACs)"][1]) == 2 * run.after.macs
    assert facts["size of the weights"][0] == words.size(run.before.bytes)
    assert float(facts["accuracy"][1]) == pytest.approx(record.history[-1].metric, rel=1e-4)
    before, after = run.latency["the example inputs"]
    assert facts["latency, the example inputs"][0].startswith(f"{1e3 * before.median:.2f} ms")
    assert before.low <= before.median <= before.high


def test_the_bars_are_what_the_pruned_model_has(page: Element, result: PruneResult) -> None:
    [bars] = [ul for ul in page.all("ul") if ul.attributes["class"].startswith("bars")]
    seen = {}
    for row in bars.all("li"):
        [name], [count], [bar] = (row.all("span", class_=c) for c in ("name", "count", "bar"))
        before, after = map(whole, count.text.split(" → "))
        width = float(re.search(r"width:([\d.]+)%", bar.all("i")[0].attributes["style"])[1])
        assert width == pytest.approx(100 * after / before, abs=0.01)
        seen[name.text] = after
    own = dict(result.model.named_parameters())
    assert seen == {name: len(own[f"{name}.weight"]) for name in seen}
    assert len(seen) == 4


def test_every_step_and_every_frozen_axis_is_on_the_page(page: Element, record: Record) -> None:
    rows = next(d for d in page.all("div") if d.attributes.get("aria-label") == "Every step").rows()
    assert [int(row[0]) for row in rows] == [step.step for step in record.history]
    assert [whole(row[2]) for row in rows] == [step.macs for step in record.history]
    assert sum(int(row[1]) for row in rows) == len(record.plan)
    for axes in record.run.network.frozen.values():
        for place in content.places(axes):
            assert place in page.text


def test_the_page_says_how_it_was_made(page: Element, record: Record) -> None:
    for text in (*record.run.origin.versions.values(), record.run.criterion, "accuracy"):
        assert text in page.text
    terms = [(d.all("dt"), d.all("dd")) for d in page.all("dl")]
    said = {t.text: d.text for names, values in terms for t, d in zip(names, values, strict=True)}
    assert said["seed"] == "3"
    assert said["verdict"] == "holds"
    assert said["largest deviation"] == f"{record.run.proof.max_error:.2e}"


def test_a_broken_law_is_not_overlooked(record: Record) -> None:
    for error in (1.0, float("nan")):
        broken = record.run.proof.model_copy(update={"max_relative_error": error})
        run = record.run.model_copy(update={"proof": broken})
        changed = Record(run, record.plan, record.history, record.importance)
        assert "is BROKEN" in read_page(render_page(changed)).text
        assert "BROKEN" in str(changed)


def test_the_page_is_whole_in_itself_and_runs_nothing(page: Element) -> None:
    check_whole(page)


def test_the_page_can_be_read_aloud(page: Element) -> None:
    check_read_aloud(page)
    assert all(image.attributes["alt"] for image in page.all("img"))


LINES = "leaf twig third plum moss pond".split()


@pytest.mark.parametrize("theme", [0, 1])
def test_the_colours_can_be_told_apart(theme: int) -> None:
    """The contrast ratios that WCAG 2.2 asks for: 4.5 for text (1.4.3), 3 for graphics (1.4.11)."""
    colours = theme_colours((STATIC / "page.css").read_text(), theme)

    def contrast(a: str, b: str) -> float:
        return contrast_ratio(colours[a], colours[b])

    assert all(contrast(text, "ground") >= 4.5 for text in ("ink", "soft", "bad"))
    assert contrast("ink", "panel") >= 4.5
    assert all(contrast(line, "ground") >= 3 for line in LINES)
    assert contrast("leaf", "gone") >= 3
    for heat in ("leaf", "twig"):  # the strongest colour of a heat map's cell, under its number
        half = mixed(colours[heat], colours["ground"], 0.5)
        assert contrast_ratio(colours["ink"], half) >= 4.5


def test_the_points_of_a_chart_lie_where_their_numbers_say(record: Record) -> None:
    for chart in content.charts(record):
        drawn = draw(chart)
        for line in drawn.lines:
            points, places = line.series.points, line.points
            for ticks, axis in ((drawn.x_ticks, 0), (drawn.y_ticks, 1)):
                values = [float(text) for _, text in ticks]
                slope, start = np.polyfit(values, [place for place, _ in ticks], 1)
                expected = [slope * point[axis] + start for point in points]
                assert [p[axis] for p in places] == pytest.approx(expected, abs=0.2)
    against = {chart.key: chart for chart in content.charts(record)}
    assert against.keys() == {"metric-macs", "metric-params", "steps"}
    first, last = against["metric-macs"].series[0].points[:: len(record.history) - 1]
    assert first == (100, record.history[0].metric)
    assert last[0] == pytest.approx(100 * record.run.after.macs / record.run.before.macs)


def test_a_heat_map_puts_first_what_went_first(record: Record) -> None:
    for heat in content.heat_maps(record):
        there = np.isfinite(heat.values).sum(axis=0)
        assert (np.diff(there[: heat.before - heat.after]) >= 0).all()
        assert np.isfinite(heat.values[:, heat.before - heat.after :]).all()
        for row in heat.values:
            own = row[np.isfinite(row)]
            assert own.size == 0 or (own.min() == 0 and own.max() in (0, 1))
        small = heat.binned(2, 3)
        assert small.shape == (min(2, len(heat.values)), 3)
        np.testing.assert_array_equal(heat.binned(99, 999), heat.values)


def test_a_run_that_removed_nothing_and_measured_nothing_has_a_page_too() -> None:
    result = sc.prune(
        cli_fixtures.build(), X, train=cli_fixtures.train(), loss=cli_fixtures.loss,
        budget={"macs": 1.0}, final=0, progress=False,
    )  # fmt: skip
    page = read_page(render_page(result.record()))
    assert "Nothing was removed" in page.text
    assert "latency" not in page.all("table", class_="facts")[0].text
    assert "Nothing" not in str(result.record())


# ---------------------------------------------------------------------- names from elsewhere
HOSTILE = (
    "</style><script>alert('1')</script><img src=http://x.test/ onerror=alert(2)>$\\frac$\x1b[2J"
)


def hostile(record: Record) -> Record:
    """The same record with every name in it turned against its reader."""
    text = record.run.model_dump_json()
    names = ["conv1", "channel", "taylor", "accuracy", "kernel axis", "Small", "Linux", "2.", "cpu"]
    for name in names:
        text = re.sub(rf'"{re.escape(name)}[^"]*"', lambda _: json.dumps(HOSTILE), text)
    changed = json.loads(text)
    changed["origin"] |= {"command": HOSTILE, "finished": HOSTILE, "device": HOSTILE}
    changed["stopped"] = HOSTILE
    changed["options"] |= {"only": [HOSTILE], HOSTILE: HOSTILE}
    values = dict(record.importance)
    values[HOSTILE] = values.pop("conv1")
    return Record(Run.model_validate_json(json.dumps(changed)), record.plan, record.history, values)


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_hostile_names_are_text(record: Record, page: Element, tmp_path: Path) -> None:
    turned = hostile(record)
    other = read_page(render_page(turned))
    assert {e.tag for e in other.all("*")} == {e.tag for e in page.all("*")} | {"pre"}
    names = {name for e in page.all("*") for name in e.attributes}
    assert {name for e in other.all("*") for name in e.attributes} == names
    assert other.text.count("<script>alert('1')") > 10
    for path in write_figures(turned, tmp_path):
        if path.suffix == ".svg":
            tags = {e.tag.rpartition("}")[2] for e in ElementTree.parse(path).iter()}
            assert "script" not in tags
    assert "\x1b" not in str(turned)


# ---------------------------------------------------------------------- size
def large(record: Record, groups: int = 300, steps: int = 1000) -> Record:
    """A record of a network much larger than most."""
    draw = np.random.default_rng(0)
    one = record.run.network.groups[0].model_copy(update={"size": 256})
    names = [f"stage{i // 10}.block{i % 10}.conv" for i in range(groups)]
    network = record.run.network.model_copy(
        update={
            "groups": [one.model_copy(update={"name": name}) for name in names],
            "layers": [Layer(tensor=f"{name}.weight", dim=0, size=256) for name in names],
            "frozen": {
                f"reason {i}": axes * 4
                for i, axes in enumerate(list(record.run.network.frozen.values()) * 1000)
            },
        }
    )
    run = record.run.model_copy(update={"network": network})
    history = [record.history[0].model_copy(update={"step": i}) for i in range(steps)]
    scores = {name: draw.random((24, 256)).astype(np.float32) for name in names}
    return Record(run, record.plan, history, scores)


def test_the_page_of_a_huge_network_stays_small(record: Record) -> None:
    huge = large(record)
    assert sum(map(len, huge.run.network.frozen.values())) == 28_000
    text = render_page(huge)
    assert len(text.encode()) < 3_000_000
    read = read_page(text)
    assert len(read.all("img")) == content.MAPS
    assert "400 of 1000 steps" in read.text
    assert len(read.all("details")) < 12  # reasons that differ in a number are one


# ---------------------------------------------------------------------- text and figures
def test_the_text_says_what_the_record_says(record: Record) -> None:
    text = str(record)
    run = record.run
    for value in (run.before.macs, run.after.macs, 2 * run.after.macs, run.after.params):
        assert f"{value:,}" in text
    for bar in content.bars(record):
        assert re.search(rf"{re.escape(bar.name)} +{bar.before} +{bar.after}", text)
    for needed in ("kernel axis", "holds", "░", "█", torch.__version__, "accuracy"):
        assert needed in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_figures_are_there_and_the_same_each_time(
    result: PruneResult, record: Record, tmp_path: Path
) -> None:
    paths = result.plot(tmp_path / "a")
    names = {"units", "metric-macs", "metric-params", "steps", "importance"}
    assert {p.name for p in paths} == {f"{n}.{kind}" for n in names for kind in ("svg", "png")}
    again = write_figures(record, tmp_path / "b")
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


# ---------------------------------------------------------------------- broken files
FILES = ("record.json", "history.json", "plan.json", "scores.safetensors")


@pytest.fixture
def spoil(folder: Path, tmp_path: Path) -> Callable[[str, bytes | None], Path]:
    """A copy of the saved run with one file replaced, or gone."""
    shutil.copytree(folder, tmp_path / "copy")

    def replace(name: str, data: bytes | None) -> Path:
        for own in FILES:
            shutil.copy(folder / own, tmp_path / "copy" / own)
        path = tmp_path / "copy" / name
        path.unlink() if data is None else path.write_bytes(data)
        return tmp_path / "copy"

    return replace


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(name: str, folder: Path, spoil: Any) -> None:
    data = (folder / name).read_bytes()
    for length in [None, *range(0, len(data) - 1, max(1, len(data) // 40))]:
        with pytest.raises(FileError):
            Record.load(spoil(name, None if length is None else data[:length]))
    Record.load(spoil(name, data))


def _leaves(data: Any, path: tuple = ()) -> Iterator[tuple]:
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _leaves(value, (*path, key))
    yield path


def _with(data: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    changed = copy.copy(data)
    changed[path[0]] = _with(data[path[0]], path[1:], value)
    return changed


WRONG = [None, True, -1, 1.5, 10**400, "x", "", [], {}, [1], {"a": 1}]


@settings(max_examples=60)
@given(choice=st.data())
@pytest.mark.parametrize("name", ["record.json", "history.json"])
def test_a_wrong_value_is_refused_or_drawn(name: str, folder: Path, choice: st.DataObject) -> None:
    """Any value in place of any other: a typed error, or a record that still makes a page."""
    whole = {own: (folder / own).read_bytes() for own in FILES}
    data = json.loads(whole[name])
    path = choice.draw(st.sampled_from(list(_leaves(data))))
    changed = _with(data, path, choice.draw(st.sampled_from(WRONG)))
    spoilt = folder.parent / f"spoilt-{name}"
    spoilt.mkdir(exist_ok=True)
    for own, content_of in whole.items():
        (spoilt / own).write_bytes(content_of)
    (spoilt / name).write_text(json.dumps(changed))
    try:
        read = Record.load(spoilt)
    except FileError:
        return
    read_page(render_page(read))
    assert str(read)


def test_parts_of_two_runs_are_refused(folder: Path, spoil: Any, tmp_path: Path) -> None:
    other = sc.prune(
        cli_fixtures.other(), torch.zeros(1, 4), train=[torch.randn(8, 4)], progress=False,
        objective=lambda model, x: model(x).square().sum(1), budget={"macs": 0.5}, final=0,
    ).save(tmp_path / "other")  # fmt: skip
    for name in ("record.json", "plan.json", "scores.safetensors"):
        with pytest.raises(FileError, match=r"group '\w+'|'[\w.]+' of the plan"):
            Record.load(spoil(name, (other / name).read_bytes()))
    short = json.dumps(json.loads((folder / "history.json").read_text())[:1])
    with pytest.raises(FileError, match="more scores than steps"):
        Record.load(spoil("history.json", short.encode()))
    with pytest.raises(FileError, match="history is empty"):
        Record.load(spoil("history.json", b"[]"))


def test_a_folder_of_sc_save_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = cli_fixtures.build()
    plan = sc.trace(model, X).plan({"conv1": [0]})
    sc.save(sc.apply(model, plan), plan, tmp_path)
    with pytest.raises(FileError, match=r"holds no record\.json"):
        Record.load(tmp_path)


def test_what_a_callback_adds_to_the_history_does_no_harm() -> None:
    entry = {"step": 0, "removed": {}, "macs": 1, "params": 1, "units": 1, "loss": None,
             "metric": None, "seconds": 0.1, "mine": object()}  # fmt: skip
    assert Step.model_validate(entry).step == 0


# ---------------------------------------------------------------------- the command line
def test_the_command_line_writes_and_prints(folder: Path, tmp_path: Path) -> None:
    run = lambda *args: CliRunner().invoke(app, ["report", *map(str, args)])  # noqa: E731
    text = run(folder, "--text")
    assert "units per layer" in text.stdout
    assert not (folder / "report.html").exists()
    assert run(folder, "--figures", tmp_path / "f").exit_code == 0
    assert len(list((tmp_path / "f").iterdir())) == 10
    assert not (folder / "report.html").exists()
    assert run(folder, "--out", tmp_path / "page.html").exit_code == 0
    assert run(folder).stdout.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text() == (tmp_path / "page.html").read_text()
    refused = run(tmp_path)
    assert refused.exit_code == 2
    assert "holds no record.json" in refused.stderr


def test_without_the_extra_the_text_is_still_there(
    result: PruneResult, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert not extra.installed()
    with pytest.raises(MissingExtraError, match=r"pip install 'secateurs\[report\]'"):
        result.report(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    refused = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "x.html")])
    assert refused.exit_code == 2
    assert "jinja2 is not installed" in refused.stderr
    assert CliRunner().invoke(app, ["report", str(folder), "--text"]).exit_code == 0

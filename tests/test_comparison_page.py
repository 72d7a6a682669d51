"""The page of a comparison: what it says is what the statistics say, whatever is in the records."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import comparisons
from tests.pages import Element, check_read_aloud, check_whole, read_page
from typer.testing import CliRunner

from secateurs.cli.app import app
from secateurs.compare.comparison import Comparison
from secateurs.errors import FileError
from secateurs.report.charts import draw
from secateurs.report.compared_charts import TITLES, curve_charts
from secateurs.report.comparison_page import render_comparison, render_text
from secateurs.report.words import rounded, size


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return comparisons.typical()


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> Element:
    return read_page(render_comparison(comparison))


def tables(page: Element) -> dict[str, Element]:
    return {table.all("caption")[0].text: table for table in page.all("table")}


def titles(table: Element) -> list[str]:
    return [cell.text for cell in table.all("thead")[0].all("th")]


def words(page: Element) -> str:
    return " ".join(page.text.split())


# ---------------------------------------------------------------------- what it says
def test_the_answer_comes_first(page: Element, comparison: Comparison) -> None:
    advice = comparison.recommendation
    [header] = page.all("header")
    assert advice.headline in header.text
    first = page.all("section")[0]
    for reason in advice.reasons:
        assert reason in first.text
    assert [block.text for block in first.all("pre")] == [advice.python, advice.shell]
    assert "clear" in first.all("p")[0].attributes["class"]


@pytest.mark.parametrize("name", ["spearman", "kendall"])
def test_the_correlations_are_those_of_the_statistics(
    name: str, page: Element, comparison: Comparison
) -> None:
    [table] = [t for title, t in tables(page).items() if title.lower().startswith(name)
               and "interval" in title]  # fmt: skip
    found = {one.criterion: getattr(one, name) for one in comparison.correlations()}
    rows = {row[0]: row[1:] for row in table.rows()}
    assert list(rows) == ["taylor", "weight", "random"]
    for criterion, cells in rows.items():
        own = found[criterion]
        for cell, one in zip(cells, (own.per_layer, own.all_layers, own.all_l2), strict=False):
            expected = f"{rounded(one.value)} {rounded(one.low)} to {rounded(one.high)}"
            assert cell.startswith(expected)
            assert ("over seeds" in cell) == (criterion == "random")
        assert cells[-1] == "3 of 3"


def test_the_map_has_every_layer_of_every_criterion(page: Element, comparison: Comparison) -> None:
    table = tables(page)["Spearman's ρ within each layer"]
    for row, name in zip(table.rows(), ("taylor", "weight", "random"), strict=True):
        [own] = [one for one in comparison.correlations() if one.criterion == name]
        layers = [own.spearman.layers[layer].value for layer in titles(table)]
        assert row == [name, *map(rounded, layers)]
    for cell in table.all("td", class_="cold"):
        assert cell.text.startswith("−") or float(cell.text) == 0


def test_every_result_is_on_the_page(page: Element, comparison: Comparison) -> None:
    shown = {}
    for form, title in TITLES.items():
        table = tables(page)[title]
        for name, *cells in table.rows():
            for budget, cell in zip(titles(table)[1:], cells, strict=True):
                shown[form, name, float(budget[:-1]) / 100] = cell
    wanted = {}
    for line in comparison.lines:
        if line.kind == "prune":
            wanted.setdefault((line.form, line.criterion, line.budget), []).append(line.metric)
    assert shown.keys() == wanted.keys()
    for key, values in wanted.items():
        spread = f"{np.std(values, ddof=1):.2g}"
        assert shown[key] == f"{np.mean(values):.4g} ± {spread} 3 seeds"


def test_every_sensitivity_is_on_the_page(page: Element, comparison: Comparison) -> None:
    table = tables(page)["accuracy by fraction removed; taylor"]
    shown = {
        (row[0], float(share[:-1]) / 100): float(cell)
        for row in table.rows()
        for share, cell in zip(titles(table), row[1:], strict=True)
    }
    wanted = {
        (line.group, line.removed): line.metric
        for line in comparison.lines
        if line.kind == "sensitivity"
    }
    wanted |= {(group, 0.0): 0.9 for group in comparisons.LAYERS}
    assert shown == pytest.approx(wanted, rel=5e-3)


def test_prices_and_refusals_are_on_the_page(page: Element, comparison: Comparison) -> None:
    rows = tables(page)["What the scores took"].rows()
    assert [row[0] for row in rows] == ["taylor", "weight", "random", "the exact oracle"]
    assert rows[0][1:] == ["1 s", size(1000)]
    assert rows[-1][1] == "60 s"
    assert "batchnorm" in words(page)
    assert "the network has no BatchNorm" in words(page)


def test_the_points_of_a_curve_are_the_means_over_seeds(comparison: Comparison) -> None:
    charts = {chart.key: chart for chart in curve_charts(comparison)}
    assert list(charts) == ["one-shot", "fine-tuned", "iterative"]
    curves = {(c.form, c.criterion): c for c in comparison.curves()}
    for form, chart in charts.items():
        for line in draw(chart).lines:
            points = curves[form, line.series.name].points
            assert line.series.points == [(100 * p.budget, p.mean) for p in points]
            ends = [(p.mean - p.spread, p.mean + p.spread) for p in points]
            np.testing.assert_allclose(line.series.band, ends)
            half = len(line.band) // 2
            for (x, y), (_, low), (_, high) in zip(
                line.points, line.band[:half], line.band[:half - 1 : -1], strict=True
            ):  # fmt: skip
                assert high <= y <= low  # a picture's y runs down
                assert (x, low) in line.band


def test_the_text_says_the_same(comparison: Comparison, page: Element) -> None:
    text = render_text(comparison)
    for table in page.all("table"):
        for row in table.rows():
            for cell in row:
                assert cell.split(" ")[0] in text, cell
    assert comparison.recommendation.headline in text
    assert comparison.recommendation.headline in str(comparison)
    assert "Spearman" in str(comparison)


# ---------------------------------------------------------------------- what every page keeps
def test_the_page_is_whole_in_itself_and_can_be_read_aloud(page: Element) -> None:
    check_whole(page)
    check_read_aloud(page)


def test_names_are_only_ever_text() -> None:
    evil = "</title><script>alert(1)</script>\" onload='x' {{ 7*7 }} \x1b[2J"
    layers = {f"{evil}{i}": 5 for i in range(3)}
    truth = comparisons.oracle(layers)
    lines = [
        truth,
        comparisons.noisy(truth, evil, 0.5),
        comparisons.refused(f"b{evil}", evil),
        *comparisons.pruned(lambda *_: 0.5, [evil, "weight"]),
    ]
    made = Comparison(
        comparisons.setting(
            layers, network=evil, metric_name=evil, criteria=[evil, "weight"], machine={evil: evil}
        ),
        lines,
    )
    page = read_page(render_comparison(made))
    check_whole(page)
    assert evil in page.all("h1")[0].text
    assert "49" not in page.all("title")[0].text
    assert "\x1b" not in render_text(made) + str(made)


def test_a_large_comparison_stays_small() -> None:
    layers = {f"layer{i // 15}.{i % 15}.conv": 8 for i in range(60)}
    names = [*(f"criterion-{i}" for i in range(17)), "random"]
    truth = comparisons.oracle(layers)
    made = Comparison(
        comparisons.setting(layers, criteria=names),
        [truth, *(comparisons.noisy(truth, name, 1.0) for name in names),
         *comparisons.pruned(lambda name, _, budget, seed: len(name) * budget + seed, names,
                             ("one-shot", "fine-tuned", "iterative"), [0.8, 0.6, 0.4, 0.2, 0.1]),
         *comparisons.sensitivity(list(layers), [i / 10 for i in range(1, 10)])],
    )  # fmt: skip
    text = render_comparison(made)
    assert len(text) < 500_000
    page = read_page(text)
    heat = tables(page)["Spearman's ρ within each layer"]
    assert (len(heat.rows()), len(titles(heat))) == (60, 18)  # the longer side down
    for chart in curve_charts(made):
        assert len(chart.named) == 6
        assert "random" in [series.name for series in chart.named]
        assert chart.grey == 12


@pytest.mark.parametrize(
    "kinds",
    [(), ("oracle",), ("scores",), ("prune",), ("sensitivity",), ("oracle", "scores")],
)
def test_a_part_of_a_comparison_has_a_page_too(kinds: tuple[str, ...]) -> None:
    made = comparisons.typical()
    part = Comparison(made.setting, [line for line in made.lines if line.kind in kinds])
    page = read_page(render_comparison(part))
    check_read_aloud(page)
    assert part.recommendation.headline in page.text
    assert render_text(part)


WRONG = [None, True, -1, 1.5, 1e308, 10**400, "x", "", [], {}, [1.0], {"a": [1.0]}]


def leaves(data: Any, path: tuple = ()) -> list[tuple]:
    if not isinstance(data, (dict, list)):
        return [path]
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    return [path, *(leaf for key, value in pairs for leaf in leaves(value, (*path, key)))]


@settings(max_examples=40, deadline=None)
@given(choice=st.data())
def test_a_wrong_value_is_refused_or_drawn(
    choice: st.DataObject, comparison: Comparison, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any value in place of any other: a typed error, or a comparison that still makes a page."""
    lines = [json.loads(x.model_dump_json()) for x in [comparison.setting, *comparison.lines]]
    line = choice.draw(st.sampled_from([0, 0, 1, 2, 7, 8, 20, len(lines) - 1]))
    path = choice.draw(st.sampled_from(leaves(lines[line])[1:]))
    holder = lines[line] = copy.deepcopy(lines[line])
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = choice.draw(st.sampled_from([*WRONG, float("nan"), float("inf")]))
    file = tmp_path_factory.mktemp("spoilt") / "c.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    try:
        read = Comparison.load(file)
    except FileError:
        return
    read_page(render_comparison(read))
    assert str(read)


# ---------------------------------------------------------------------- from Python and the shell
def test_the_command_line_draws_it(comparison: Comparison, tmp_path: Path) -> None:
    lines = comparisons.write(comparison, tmp_path / "runs" / "comparison.jsonl")
    run = lambda *args: CliRunner().invoke(app, ["report", *map(str, args)])  # noqa: E731
    assert run(lines.parent, "--text").stdout == render_text(comparison) + "\n"
    assert not (lines.parent / "report.html").exists()
    assert run(lines.parent).stdout.strip() == str(lines.parent / "report.html")
    assert run(lines).stdout.strip() == str(lines.with_suffix(".html"))
    assert (lines.parent / "report.html").read_text() == lines.with_suffix(".html").read_text()
    assert lines.with_suffix(".html").read_text() == render_comparison(comparison)
    assert run(lines, "--figures", tmp_path / "f").exit_code == 0
    names = {path.stem for path in (tmp_path / "f").iterdir()}
    assert names == {"sensitivity", "one-shot", "fine-tuned", "iterative", "correlation"}
    assert len(list((tmp_path / "f").iterdir())) == 10
    lines.write_text("{}\n")
    refused = run(lines)
    assert refused.exit_code == 2
    assert "line 1 is not a comparison" in refused.stderr

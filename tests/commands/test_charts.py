"""Charts: what they show of what they are given, on light and on dark ground."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from servers import COSTS, EVIL, P, memory

pytest.importorskip("matplotlib")
from ksmwalk.commands import charts, estimate_plots
from ksmwalk.estimates.estimate import estimate


@pytest.fixture
def axes():
    with charts.style():
        yield charts.figure(5, 4).subplots()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_passes_until_merged_count_every_page_once(axes):
    charts.passes_until_merged(axes, np.array([5, 5, 105, 125, 125, 125]), searched=200)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["already", "1", "2", "3", "never"]
    assert [int(bar.get_height()) for bar in axes.patches] == [5, 0, 100, 20, 75]


def test_many_lines_are_told_apart_and_named(axes):
    assert len({charts.line_of(number, 28)[:3] for number in range(28)}) == 28
    axes.plot([0, 1], label=charts.short("_hidden"))
    assert [text.get_text() for text in axes.legend().get_texts()] == [" _hidden"]


def test_many_passes_are_put_together(axes):
    charts.passes_until_merged(axes, np.arange(41), searched=40, most=3)
    assert [int(bar.get_height()) for bar in axes.patches] == [1, 1, 1, 37, 0]


def test_mappings_show_their_merge_ratio(axes):
    charts.merge_ratio_by_mapping(axes, ["[heap]", EVIL], np.array([400, 100]) * P, np.array([100, 100]) * P)
    assert texts(axes) == ["25%", "100%"]


def test_the_matrix_says_who_shares_what_with_whom(axes):
    charts.sharing_matrix(axes, ["a", "$b$"], np.array([[0, 3 << 20], [3 << 20, 1 << 30]]))
    assert texts(axes) == ["–", "3\nMiB", "3\nMiB", "1\nGiB"]


@pytest.mark.parametrize("many", [2, 16])
def test_no_title_is_cut_where_charts_stand_below_each_other(many, monkeypatch, tmp_path):
    shared = np.full((many, many), 1 << 20)
    some = [
        ("mappings", 2, lambda axes: charts.merge_ratio_by_mapping(axes, ["a" * 30], np.array([4 * P]), np.array([P]))),
        ("matrix", 1.9 + 0.42 * many, lambda axes: charts.sharing_matrix(axes, ["x"] * many, shared, estimate_plots._SHARING)),
    ]
    drawn = []
    real = charts.rendered
    monkeypatch.setattr(charts, "rendered", lambda figure, kind: drawn.append(figure) or real(figure, kind))
    estimate_plots.draw_panels(some, "both", str(tmp_path / "both.png"))
    [figure] = drawn
    titles = [text for axes in figure.axes for text in (axes.title, axes._left_title) if text.get_text()]
    assert len(titles) == 2
    for title in titles:
        box = title.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_a_front_has_what_no_other_setting_beats(axes):
    cpu, freed = np.array([0.1, 0.2, 0.2, 0.3, 0.4]), np.array([10, 30, 20, 30, 50])
    assert charts.front(cpu, freed).tolist() == [0, 1, 4]
    charts.sweep_front(axes, cpu, freed << 20, np.array([1.0, 60, 60, 3600, 86400]))
    # what holds the settings, and their front
    assert len(axes.collections[0].get_offsets()) == 5 and len(axes.lines[0].get_xdata()) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none is both cheaper and better"]


@pytest.mark.parametrize("points", [1, 2])
def test_few_settings_make_a_front_too(axes, points):
    charts.sweep_front(axes, np.full(points, 0.1), np.zeros(points, int), np.zeros(points))
    charts.rendered(axes.figure, "png")
    # a front of one point is no line, and no legend names one
    assert not axes.lines and axes.get_legend() is None


def test_a_band_is_drawn_where_there_is_one(axes):
    what = memory(("web", 300, 0, 0), ("web", 300, 0, 0))
    what.processes[0].changes[:150] = 1
    what.samples, what.seconds_between = 2, 1.0
    charts.freed_over_time(axes, estimate(what, costs=COSTS).over_time())
    assert len(axes.collections) == 1
    assert axes.lines[0].get_ydata()[-1] == 300 * P


def test_the_map_shows_where_pages_are_merged():
    found = estimate(memory(("web", 240, 240, 0), ("web", 240, 0, 0)), costs=COSTS)
    (strip,) = estimate_plots.strips(found.capture.processes[0], found.expected.merged[0])
    assert (strip.present == 1).all() and len(strip.present) == 240
    assert (strip.merged[:120] == 1).all() and (strip.merged[120:] == 0).all()
    assert strip.words == "50% of 1.9 MiB" and strip.label == "40000000 anonymous"


def test_an_estimate_of_nothing_is_drawn_as_well(tmp_path):
    found = estimate(memory(("a", 10, 0, 0)), mark="marked", costs=COSTS)
    estimate_plots.draw(found, str(tmp_path / "x.svg"))
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")


def test_svg_turns_dark_where_its_reader_does(axes):
    axes.set_title(EVIL)
    text = charts.rendered(axes.figure, "svg").decode()
    rules = re.search(r"<style>(@media \(prefers-color-scheme:dark\).*?)</style>", text)[1]
    for light, dark in charts.DARK.items():
        assert f'[style*="fill: {light}"]{{fill:{dark} !important}}' in rules
    # the colours that are to change are written as the rules expect them
    assert f"fill: {charts.INK}" in text and f"fill: {charts.GROUND}" in text
    assert EVIL in "".join(ElementTree.fromstring(text).itertext())


def test_an_inline_svg_shares_no_id_with_another(axes):
    axes.plot([1, 2], [3, 4], marker="o")
    first, second = (charts.inline(axes.figure, name) for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first))
    assert used and used <= ids[0]


def test_the_same_estimate_gives_the_same_file(axes):
    axes.plot([1, 2], [3, 4])
    assert charts.rendered(axes.figure, "svg") == charts.rendered(axes.figure, "svg")

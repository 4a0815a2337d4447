"""Scales and figures: points land where the numbers say, and what cannot be drawn is refused."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.evaluation.charts import Axis, Row, Series, bar_chart, dot_plot, xy_chart
from llm_rerank.evaluation.scales import Scale, around, linear_ticks, log_ticks, number_words, spread, tick_words
from llm_rerank.evaluation.svg import SOFT, WIDTH, fitted_text, safe, text_width, wrapped_text
from llm_rerank.types import DataError

SVG = "{http://www.w3.org/2000/svg}"


def marks(svg: str) -> list[tuple[float, float]]:
    """Middle of each point's mark, in the order drawn."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        if element.get("class") != "mark":
            continue
        if element.tag == f"{SVG}circle":
            found.append((float(element.get("cx")), float(element.get("cy"))))
        elif element.tag == f"{SVG}rect":
            half = float(element.get("width")) / 2
            found.append((float(element.get("x")) + half, float(element.get("y")) + half))
        else:
            x, y = map(float, re.match(r"M([\d.-]+) ([\d.-]+)l", element.get("d")).groups())
            found.append((x, y + (4.5 if "4.5 8h" in element.get("d") else -4.5)))
    return found


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}text"))


def tick_places(svg: str, along: str) -> dict[float, float]:
    """Value and place of the tick labels along "x" (under the plot) or "y" (left of it), read from the picture."""
    found = {}
    for element in texts(svg):
        anchor = element.get("text-anchor")
        if re.fullmatch(r"-?[\d,.]+( %)?", element.text) and anchor == {"x": "middle", "y": "end"}[along]:
            value = float(element.text.rstrip(" %").replace(",", "")) / (100 if "%" in element.text else 1)
            found[value] = float(element.get(along))
    return found


def read_off(places: dict[float, float], at: float, log: bool = False) -> float:
    """Read a place off an axis as a person would: between its outermost ticks."""
    (low, start), *_, (high, end) = sorted(places.items())
    share = (at - start) / (end - start)
    return low * (high / low) ** share if log else low + share * (high - low)


def test_scales_by_hand():
    linear = Scale(0.0, 10.0, 100.0, 200.0)
    assert [linear(value) for value in (0, 2.5, 10, 11, -1)] == [100, 125, 200, 200, 100]
    backwards = Scale(0.0, 1.0, 200.0, 100.0)
    assert backwards(0.25) == 175
    log = Scale(0.001, 1.0, 0.0, 300.0, log=True)  # 100 units a decade
    assert [round(log(value), 6) for value in (0.001, 0.01, 0.1, 1.0, 1e-9)] == [0, 100, 200, 300, 0]
    assert log(0.02) == pytest.approx(100 + 100 * math.log10(2))


@pytest.mark.parametrize(
    ("low", "high", "log"), [(1.0, 1.0, False), (0.0, 1.0, True), (math.nan, 1, False), (0, math.inf, False)]
)
def test_scales_without_extent_are_refused(low, high, log):
    with pytest.raises(DataError, match="scale from"):
        Scale(low, high, 0, 1, log)


def test_ticks_by_hand():
    assert linear_ticks(0, 1) == [0, 0.2, 0.4, pytest.approx(0.6), 0.8, 1.0]
    assert linear_ticks(0.031, 0.247) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert linear_ticks(-3, 12) == [-2.5, 0, 2.5, 5, 7.5, 10]
    assert log_ticks(0.0004, 0.03) == pytest.approx([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02])
    assert log_ticks(0.001, 1000, 4) == pytest.approx([0.001, 0.1, 10, 1000])
    assert log_ticks(1.1, 1.9) == pytest.approx([1.2, 1.4, 1.6, 1.8])  # no round power inside


@given(low=st.floats(-1e4, 1e4), span=st.floats(1e-3, 1e5), most=st.integers(3, 8))
def test_linear_ticks_are_round_even_inside_and_few(low, span, most):
    ticks = linear_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    for step in steps:
        assert step == pytest.approx(steps[0], rel=1e-6, abs=1e-6 * abs(low))
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert any(mantissa == pytest.approx(round_step, rel=1e-3) for round_step in (1, 2, 2.5, 5))


@given(low=st.floats(1e-6, 10), ratio=st.floats(1.1, 1e6), most=st.integers(3, 8))
def test_log_ticks_rise_inside_and_are_few(low, ratio, most):
    ticks = log_ticks(low, low * ratio, most)
    assert 1 <= len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


def test_bounds_leave_room_and_pass_over_what_is_not_finite():
    assert around([1.0, 2.0, math.nan, math.inf]) == pytest.approx((0.94, 2.06))
    assert around([1.0, 2.0], zero=True) == pytest.approx((0.0, 2.12))
    assert around([0.3, 0.3]) == pytest.approx((0.27, 0.33))
    assert around([0.0, 0.0], zero=True) == (-1.0, 1.0)
    assert around([-2.0], zero=True) == pytest.approx((-2.12, 0.0))
    low, high = around([0.0, -1.0, 0.01, 0.1], log=True)
    assert 0.005 < low < 0.01
    assert 0.1 < high < 0.2
    with pytest.raises(DataError, match="no finite value"):
        around([math.nan])
    with pytest.raises(DataError, match="no finite value"):
        around([0.0], log=True)


def test_numbers_in_words():
    shown = {0.0042: "0.0042", 0.5: "0.5", 12.0: "12", 1234.4: "1,234", 0: "0", -0.25: "-0.25", 0.00001234: "0.000012"}
    assert {value: number_words(value) for value in shown} == shown
    assert number_words(math.nan) == number_words(None) == "unknown"


@pytest.mark.parametrize(
    ("ticks", "words"),
    [
        ([0.0, 0.5, 1.0], ["0", "0.5", "1"]),
        ([0.1102, 0.1104, 0.1106], ["0.1102", "0.1104", "0.1106"]),
        ([1.235, 1.236, 1.237], ["1.235", "1.236", "1.237"]),
        ([0.1075, 0.11, 0.1125], ["0.1075", "0.11", "0.1125"]),
        ([1000.0, 1250.0, 1500.0], ["1,000", "1,250", "1,500"]),
        ([-0.0005, 0.0, 0.0005], ["-0.0005", "0", "0.0005"]),
        ([0.001, 0.01, 0.1, 1.0], ["0.001", "0.01", "0.1", "1"]),
    ],
)
def test_labels_of_ticks_tell_them_apart_and_say_where_they_stand(ticks, words):
    assert tick_words(ticks) == words


def test_ticks_in_percent():
    assert tick_words([0.0, 0.0025, 0.005], percent=True) == ["0 %", "0.25 %", "0.5 %"]


@given(st.lists(st.floats(-20, 120), max_size=8))
def test_labels_are_spread_apart_within_bounds(places):
    moved = spread(places, 10, 0, 100)
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in moved)
    ordered = [moved[index] for index in sorted(range(len(places)), key=lambda index: places[index])]
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(ordered))
    if all(b - a >= 10 for a, b in pairwise(sorted(places))) and all(0 <= place <= 100 for place in places):
        assert moved == pytest.approx(places)  # nothing to do


def test_points_land_where_the_numbers_say():
    x, y = [1.0, 2.5, 7.0], [0.1, 0.35, 0.2]
    svg = xy_chart("t", "d", Axis("x"), Axis("y"), [Series("", x, y)])
    across, up = tick_places(svg, "x"), tick_places(svg, "y")
    assert len(across) >= 3
    assert len(up) >= 3
    for (px, py), vx, vy in zip(marks(svg), x, y, strict=True):
        assert read_off(across, px) == pytest.approx(vx, abs=0.02)
        assert read_off(up, py) == pytest.approx(vy, abs=0.002)
    line = ElementTree.fromstring(svg).find(f"{SVG}polyline").get("points")
    assert [tuple(map(float, point.split(","))) for point in line.split()] == marks(svg)


def test_points_land_on_logarithmic_axes_and_zero_is_drawn_hollow_at_the_edge():
    probability, observed = [0.0004, 0.004, 0.05], [0.0, 0.003, 0.06]
    axis = {"log": True, "percent": True, "low": 0.0002, "high": 0.2}
    points = Series("", probability, observed, joined=False, low=[0.0, 0.001, 0.04], high=[0.002, 0.005, 0.08])
    svg = xy_chart("t", "d", Axis("x", **axis), Axis("y", **axis), [points], diagonal="perfect")
    across, up = tick_places(svg, "x"), tick_places(svg, "y")
    found = marks(svg)
    for (px, py), vx, vy in zip(found, probability, observed, strict=True):
        assert read_off(across, px, log=True) == pytest.approx(vx, rel=0.02)
        if vy:
            assert read_off(up, py, log=True) == pytest.approx(vy, rel=0.02)
    bottom = max(float(line.get("y2")) for line in ElementTree.fromstring(svg).iter(f"{SVG}line"))
    assert found[0][1] == pytest.approx(bottom, abs=0.1)
    assert 'fill="#fff"' in re.search(r'<path d="M[^>]*>', svg)[0]
    # the diagonal joins equal values
    diagonal = next(e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-dasharray") == "6 4")
    for end in ("1", "2"):
        there = read_off(across, float(diagonal.get(f"x{end}")), log=True)
        assert there == pytest.approx(read_off(up, float(diagonal.get(f"y{end}")), log=True), rel=0.02)


def test_the_chosen_cut_stands_at_its_value():
    curve = Series("", [0.5, 5.0, 50.0], [0.3, 0.1, 0.02], marked=False)
    svg = xy_chart("t", "d", Axis("x", log=True), Axis("y"), [curve], cut=(8.0, "chosen: 8 kept"))
    cut = next(e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-dasharray") == "4 3")
    assert cut.get("x1") == cut.get("x2")
    assert read_off(tick_places(svg, "x"), float(cut.get("x1")), log=True) == pytest.approx(8.0, rel=0.02)
    assert "chosen: 8 kept" in [element.text for element in texts(svg)]


def test_intervals_of_a_dot_plot_span_their_numbers():
    rows = [Row("one", 0.2, 0.1, 0.35, "0.2000", strong=True), Row("two", 0.05, None, None, "0.0500")]
    svg = dot_plot("t", "d", Axis("value"), rows, reference=(0.15, "equal"))
    across = tick_places(svg, "x")
    assert [read_off(across, x) for x, _ in marks(svg)] == pytest.approx([0.2, 0.05], abs=0.002)
    level = marks(svg)[0][1]
    on_level = [
        e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("y1") == e.get("y2") == f"{level:.1f}"
    ]
    (whisker,) = [e for e in on_level if e.get("stroke-width") == "1.5"]
    ends = [read_off(across, float(whisker.get(name))) for name in ("x1", "x2")]
    assert ends == pytest.approx([0.1, 0.35], abs=0.002)
    reference = next(e for e in ElementTree.fromstring(svg).iter(f"{SVG}line") if e.get("stroke-dasharray") == "4 3")
    assert read_off(across, float(reference.get("x1"))) == pytest.approx(0.15, abs=0.002)


def test_bars_are_as_long_as_their_numbers():
    svg = bar_chart("t", "d", [Row("a", 2.0, note="2 s"), Row("b", 0.5, note="0.5 s"), Row("none", 0.0)])
    bars = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}rect") if e.get("class") == "bar"]
    assert [float(bar.get("width")) for bar in bars][0] == pytest.approx(4 * float(bars[1].get("width")), rel=0.01)
    assert len(bars) == 2


def test_series_are_told_apart_without_colour():
    both = [Series("one", [0.0, 1.0], [1.0, 2.0]), Series("two", [0.0, 1.0], [2.0, 1.0])]
    svg = xy_chart("t", "d", Axis("x"), Axis("y"), both)
    first, second = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    assert first.get("stroke-dasharray") != second.get("stroke-dasharray")
    kinds = [e.tag for e in ElementTree.fromstring(svg).iter() if e.get("class") == "mark"]
    assert kinds == [f"{SVG}circle"] * 2 + [f"{SVG}rect"] * 2
    assert {"one", "two"} <= {element.text for element in texts(svg)}


def test_a_name_keeps_clear_of_a_falling_line():
    falling = Series("loss", [0.0, 100.0, 200.0, 300.0], [4.0, 3.0, 2.0, 1.0])
    svg = xy_chart("t", "d", Axis("step"), Axis("loss", zero=True), [falling])
    name = next(element for element in texts(svg) if element.text == "loss" and element.get("font-weight"))
    right, level = float(name.get("x")), float(name.get("y"))
    (x1, y1), *_, (x2, y2) = marks(svg)
    for x in (right - text_width("loss", bold=True), right):
        assert abs(level - (y1 + (y2 - y1) * (x - x1) / (x2 - x1))) >= 9


NAN = math.nan


@pytest.mark.parametrize(
    "draw",
    [
        lambda: xy_chart("t", "d", Axis("x"), Axis("y"), []),
        lambda: xy_chart("t", "d", Axis("x"), Axis("y"), [Series("s", [1.0, NAN], [NAN, 1.0])]),
        lambda: xy_chart("t", "d", Axis("x", log=True), Axis("y"), [Series("s", [0.0], [1.0])]),
        lambda: dot_plot("t", "d", Axis("x"), [Row("a", NAN, 0.0, 1.0)]),
        lambda: bar_chart("t", "d", [Row("a", 0.0)]),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(DataError, match="figure 't'"):
        draw()


def test_points_that_are_not_finite_are_left_out():
    series = Series("", [1.0, 2.0, 3.0], [0.1, NAN, 0.3], low=[0.0, NAN, 0.2], high=[0.2, NAN, 0.4])
    svg = xy_chart("t", "d", Axis("x"), Axis("y"), [series])
    assert len(marks(svg)) == 2
    assert "nan" not in svg


def test_figures_say_what_they_show_and_escape_it():
    svg = dot_plot("a <b> & c", 'says "d"', Axis("<axis>"), [Row("<script>alert(1)</script>", 1.0, note="<i>")])
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert [element.tag for element in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert root.find(f"{SVG}title").text == "a <b> & c"
    assert root.find(f"{SVG}desc").text == 'says "d"'
    assert "<script" not in svg
    # characters that XML cannot hold would make the figure unreadable
    assert safe("a\x00b\ud83d") == "a?b?"


def test_long_names_are_shortened_to_their_room():
    assert fitted_text("short", 100) == "short"
    cut = fitted_text("a very long name of a component", 100)
    assert cut.endswith("…")
    assert text_width(cut) <= 100
    svg = dot_plot("t", "d", Axis("x"), [Row("n" * 90, 1.0, note="0.1234")])
    assert all(0 <= float(element.get("x")) <= WIDTH for element in texts(svg))


def test_names_of_several_words_stand_on_several_lines_beside_their_mark():
    assert wrapped_text("components + features + support", 165) == ["components +", "features + support"]
    assert wrapped_text("one " + "n" * 90, 100) == ["one", fitted_text("n" * 90, 100)]
    assert wrapped_text("", 100) == [""]
    rows = [Row("components", 1.0), Row("components + features + support", 2.0), Row("sum", 3.0)]
    svg = dot_plot("t", "d", Axis("x"), rows)
    levels = {element.text: float(element.get("y")) for element in texts(svg) if element.get("text-anchor") == "end"}
    assert list(levels) == ["components", "components +", "features + support", "sum"]
    first, second, third = (y for _, y in marks(svg))
    assert second == pytest.approx((levels["components +"] + levels["features + support"]) / 2, abs=5)
    assert second - first == third - second == 32  # half of 24 and half of 40


def test_a_wide_chart_uses_its_width_and_marks_the_line_of_no_gain():
    gains = Series("", [1.0, 2.0], [-1.0, 1.0])
    svg = xy_chart("t", "d", Axis("x"), Axis("gain", zero=True), [gains], width=900.0)
    assert 'viewBox="0 0 900 ' in svg
    lines = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" stroke="(#\w+)"', svg)
    across = [one for one in lines if one[1] == one[3] and float(one[2]) == 888]
    middle = sum(float(y) for y in re.findall(r'cy="([\d.]+)"', svg)) / 2
    strong = [float(one[1]) for one in across if one[4] == SOFT]
    assert any(level == pytest.approx(middle, abs=0.2) for level in strong)
    plain = xy_chart("t", "d", Axis("x"), Axis("gain"), [gains], width=900.0)
    assert plain.count(SOFT) == svg.count(SOFT) - 1

import math
import re
import xml.etree.ElementTree as ET

import pytest

from finetune.reports.curves import WIDTH, curve, moving_average, thinned, tick, ticks


def drawn(lines, **names):
    piece = curve(lines, **{"title": "Loss", "x": "step", "y": "nats"} | names)
    return piece, ET.fromstring(piece)


def paths(root, line):
    """The data of a line's drawn paths, without the legend's."""
    found = [
        element.get("d")
        for element in root.iter("{http://www.w3.org/2000/svg}path")
        if element.get("class") == f"ft-{line}" and element.get("fill") == "none"
    ]
    return [[tuple(map(float, point.split())) for point in data[1:].split("L")] for data in found]  # fmt: skip


def test_points_stand_where_their_values_are():
    _, root = drawn({"a": [(0, 0.0), (1, 10.0), (2, 5.0)]})
    (line,) = paths(root, 1)
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 > y2 > y1 and (y0 - y2) == pytest.approx(y2 - y1, abs=0.11)  # down is more in SVG
    assert x0 > 0 and x2 < WIDTH


def test_lines_differ_without_colour():
    piece, root = drawn({"train": [(1, 1.0), (2, 2.0)], "held out": [(1, 3.0), (2, 4.0)]})
    dashes = {
        element.get("stroke-dasharray") for element in root.iter() if (element.get("class") or "").startswith("ft-")
    }
    assert len(dashes & {None, "7 3"}) == 2
    assert ">train</text>" in piece and ">held out</text>" in piece


def test_words_for_who_does_not_see_it():
    _, root = drawn({"train": [(1, 3.5), (9, 0.25)]})
    assert root.get("role") == "img"
    assert root.get("aria-label") == (
        "Loss: train from 3.5 to 0.25 over 2 points (step 1 to 9), lowest 0.25, highest 3.5"
    )
    assert root[0].tag.endswith("title") and root[0].text == "Loss"


def test_nothing_and_what_is_not_finite_is_said():
    assert "no values" in drawn({})[0] and "no values" in drawn({"a": []})[0]
    piece, root = drawn({"a": [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)]})
    assert (
        "2 values are not finite" in piece and "nan" not in piece.lower() and "inf" not in re.sub("finite", "", piece)
    )
    assert len(paths(root, 1)[0]) == 2
    assert "1 values are not finite" in drawn({"a": [(1, math.nan)]})[0]


@pytest.mark.parametrize("points", [[(1, 2.0)], [(5, 0.0), (5, 0.0)], [(0, 1e-9), (1, 1e12)], [(1, -3.0), (2, -3.0)]])
def test_odd_ranges_are_drawn_inside(points):
    _, root = drawn({"a": points})
    height = float(root.get("viewBox").split()[3])
    assert all(0 <= x <= WIDTH and 0 <= y <= height for line in paths(root, 1) for x, y in line)


def test_long_lines_are_thinned_and_keep_their_spikes():
    points = [(float(n), math.sin(n)) for n in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    short = thinned(points)
    assert len(short) < 400 and (31_234.0, 99.0) in short
    assert short == sorted(short) and short[0] == points[0] and short[-1] == points[-1]
    piece, root = drawn({"a": points})
    assert len(piece) < 20_000
    assert len(paths(root, 1)) == 2 and "with its moving average" in piece
    smooth, root = drawn({"a": [(float(n), n**0.5) for n in range(50_000)]})
    assert len(paths(root, 1)) == 1 and "moving average" not in smooth and len(smooth) < 12_000


def test_moving_average_by_hand():
    assert moving_average([(0, 1.0), (1, 2.0), (2, 6.0)], 3) == [(0, 1.5), (1, 3.0), (2, 4.0)]


def test_ticks_and_their_text():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.021, 0.049) == [0.025, 0.03, 0.035, 0.04, 0.045]
    assert ticks(3, 3) == [3]
    assert [tick(value) for value in (0, 0.25, 1500, 20_000, 2e-5, 3e6, -4)] == [
        "0", "0.25", "1.5k", "20k", "2e-5", "3M", "-4",
    ]  # fmt: skip


def test_names_are_escaped():
    piece, _ = drawn({"<b>": [(0, 0), (1, 1)], "&": [(0, 0), (1, 1)]}, title="<i>", x="<x>", y='"y"')
    assert not re.search("<(b|i|x)>", piece)

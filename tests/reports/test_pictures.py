import io
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from finetune.reports.calibration import ScoredPairs, reward_report
from finetune.reports.pictures import DARK, MOST_POINTS, STYLE, available, reward_pictures

ODD_NAMES = ["$x_1^2$", "日本", "a\nb\x00--c", "<&>\ud800", "", None, "w" * 200, "%"]


def held_out(count=60, **changes):
    random = np.random.default_rng(3)
    rejected = random.normal(0, 1, count)
    values = {
        "chosen": rejected + random.normal(0.8, 1, count),
        "rejected": rejected,
        "chosen_tokens": random.integers(1, 400, count),
        "rejected_tokens": random.integers(1, 400, count),
    }
    return ScoredPairs(**values | changes)


def draw(pairs, format="svg"):
    return reward_pictures(pairs, reward_report(pairs), format=format)


def test_files():
    assert available()
    plain = draw(held_out())
    assert set(plain) == {"reliability.svg", "scores.svg", "length.svg"}
    ratings = [["better", "slightly_better", None][n % 3] for n in range(60)]
    sliced = draw(held_out(ratings=ratings, slices={"a/b": ["x"] * 60, "c": ["y"] * 60}))
    assert set(sliced) - set(plain) == {
        "accuracy_by_rating.svg", "accuracy_by_slice_1.svg", "accuracy_by_slice_2.svg",
    }  # fmt: skip


def test_svg_is_xml_with_a_title_and_dark_colours():
    for content in draw(held_out()).values():
        root = ET.fromstring(content)
        assert root[0].tag.endswith("title") and root[0].text
        assert root[1].tag.endswith("style") and "prefers-color-scheme: dark" in root[1].text
        styles = [element.get("style") or "" for element in root.iter()]
        for light, dark in DARK.items():  # what the rule looks for is what matplotlib wrote
            used = {kind for kind in ("fill", "stroke") if any(f"{kind}: {light}" in style for style in styles)}
            assert used and all(
                f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}' in root[1].text for kind in used
            )


def test_png_is_an_opaque_picture():
    for content in draw(held_out(), "png").values():
        image = Image.open(io.BytesIO(content))
        assert image.format == "PNG" and min(image.size) > 500
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


@pytest.mark.parametrize("format", ["svg", "png"])
def test_same_numbers_same_bytes(format):
    pairs = held_out(slices={"source": ["a", "b"] * 30})
    first = draw(pairs, format)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9, "svg.hashsalt": "other"}):
        assert draw(pairs, format) == first  # nobody's settings show in them
    assert dict(matplotlib.rcParams) == before  # and theirs in nobody's
    assert not any(
        word in b"".join(first.values()) for word in (b"dc:date", b"tIME", b"matplotlib.org", b"Matplotlib v")
    )


def test_another_process_draws_the_same(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text(
        "import sys\nfrom finetune.reports.calibration import ScoredPairs, reward_report\n"
        "from finetune.reports.pictures import reward_pictures\n"
        "pairs = ScoredPairs([1.0, 2.0], [0.0, 3.0], [5, 9], [4, 4])\n"
        "sys.stdout.buffer.write(b''.join(reward_pictures(pairs, reward_report(pairs)).values()))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    there = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    assert there == b"".join(draw(ScoredPairs([1.0, 2.0], [0.0, 3.0], [5, 9], [4, 4])).values())


def test_numbers_show():
    """matplotlib writes each drawn text beside its outline as a comment."""
    pairs = ScoredPairs([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [5] * 4, [5] * 4, slices={"s": ["x"] * 3 + ["y"]})
    drawn = {name: content.decode() for name, content in draw(pairs).items()}
    assert "<!-- 100.0 % of 3 -->" in drawn["accuracy_by_slice_1.svg"]
    assert "<!-- 0.0 % of 1 -->" in drawn["accuracy_by_slice_1.svg"]
    assert "accuracy 75.0 %" in drawn["reliability.svg"]
    assert "mean +0.75" in drawn["scores.svg"] and "mean +0.25" in drawn["scores.svg"]
    assert "Spearman undefined" in drawn["length.svg"]


def test_many_answers_are_thinned_aloud():
    drawn = draw(held_out(5000))["length.svg"].decode()
    assert "of 10,000 answers drawn" in drawn
    assert drawn.count("fill-opacity: 0.65") <= MOST_POINTS + 4
    assert "answers drawn" not in draw(held_out(MOST_POINTS // 2))["length.svg"].decode()


@pytest.mark.parametrize(
    "pairs",
    [
        ScoredPairs([0.0], [0.0], [0], [0]),  # one pair, a tie, empty answers
        ScoredPairs([1e6, -1e6], [0.0, 0.0], [1, 1], [100_000, 1]),
        ScoredPairs([2.0] * 3, [1.0] * 3, [7] * 3, [7] * 3, ratings=["better"] * 3),
        held_out(40, slices={"odd": [ODD_NAMES[n % len(ODD_NAMES)] for n in range(40)]}),
    ],
    ids=["one", "extreme", "constant", "names"],
)
def test_odd_input_is_drawn_without_a_warning(pairs, recwarn):
    for content in draw(pairs).values():
        ET.fromstring(content)
    for content in draw(pairs, "png").values():
        Image.open(io.BytesIO(content)).load()
    assert [str(warning.message) for warning in recwarn] == []


def test_style_names_are_settings_of_matplotlib():
    assert set(STYLE) <= set(matplotlib.rcParams)

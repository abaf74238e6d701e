"""The picture of best-of-k: what it shows is what it was given, and the same numbers give the same bytes."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from finetune.numerics.best_of import best_of_curve
from finetune.reports.best_of import best_of_picture


def test_the_picture():
    curve = best_of_curve(list(np.random.default_rng(1).normal(size=(12, 8))))
    picture = best_of_picture(curve, prompts=12, score="score")
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg") and b"prefers-color-scheme: dark" in picture
    assert picture == best_of_picture(curve, prompts=12, score="score")
    assert picture != best_of_picture(curve[:3], prompts=12, score="score")
    assert best_of_picture(curve, prompts=12, score="score", format="png").startswith(b"\x89PNG")


def test_one_prompt_and_one_sample_have_a_picture_too():
    for scores in ([np.array([0.5])], [np.array([0.5, 1.0])]):
        assert b"<svg" in best_of_picture(best_of_curve(scores), prompts=1, score="score")

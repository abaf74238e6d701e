"""What is shown of a stage's steps, whatever it reports."""

from __future__ import annotations

import pytest

from finetune.engine.progress import Lines, duration, make_progress, seconds_left, summary


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (
            {"step": 1, "loss": 1.25, "learning_rate": 2e-4, "tokens_per_second": 1234.5, "memory_gib": 0.5},
            "loss 1.2500  lr 2.00e-04  1,234 tok/s  0.50 GiB",
        ),
        ({"step": 1, "reward": 0.5, "kl": 0.125, "loss": 0.1}, "loss 0.1000  reward 0.500  KL 0.125"),
        ({"score": 0.25, "best": None, "kept": 12, "memory_gib": 1.0}, "score 0.250  kept 12  1.00 GiB"),
        ({"step": 3, "pass_rate": 0.5, "something": "else"}, "passed 50%"),
        ({"step": 3}, ""),
    ],
)  # fmt: skip
def test_a_line_has_the_known_metrics_that_are_there(metrics: dict[str, object], text: str) -> None:
    assert summary(metrics) == text


def test_time_left_is_measured_or_unknown() -> None:
    assert seconds_left(10.0, 4, 6) == 15.0
    assert seconds_left(10.0, 0, 6) is None
    assert (duration(59.6), duration(3909)) == ("1:00", "1:05:09")


def test_lines_are_few_and_the_last_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    shown = make_progress("best", 40, 0)
    assert isinstance(shown, Lines), "pytest's stderr is no terminal"
    for step in range(1, 41):
        shown.update({"step": step, "score": step / 4})
    shown.note("done soon")
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2].split("/")[0] for line in lines[:-1]] == ["1", *map(str, range(4, 41, 4))]
    assert lines[0].startswith("best: step 1/40  score 0.250  eta 0:0")
    assert lines[-1] == "best: done soon"

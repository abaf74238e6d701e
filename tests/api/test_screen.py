"""What a notebook shows while a recipe runs: written at most every second and a half, and always the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from api_chain import Chain
from stage_recipes import sft_stage

import finetune as ft
from finetune.api import walking
from finetune.errors import InputError, InterruptedRunError
from finetune.execute import run_recipe
from finetune.notebook import screen
from finetune.notebook.page import yaml_code
from finetune.notebook.place import in_notebook
from finetune.notebook.screen import SECONDS, NotebookScreen
from finetune.plan.plan import make_plan


class Cell:
    """Keeps what is shown, at the times of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pages: list[tuple[str, str]] = []

    def screen(self) -> NotebookScreen:
        return NotebookScreen(lambda html, words: self.pages.append((html, words)), lambda: self.now)


def test_a_walk_as_it_goes(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    cell = Cell()
    screen = cell.screen()
    plan = make_plan(
        ft.Recipe.load(write_recipe({"sft": sft_stage(), "more": sft_stage(start_from="sft")})).loaded, tmp_path
    )
    sft, _ = plan.stages
    screen.open(plan, plan.stages)
    assert len(cell.pages) == 1 and "sft: to do" in cell.pages[0][1]
    screen.begin(sft)
    steps = screen.progress("sft", 10, 0)
    for step in range(1, 6):
        cell.now += SECONDS / 2
        steps.update({"step": step, "loss": 5.0 - step, "tokens_per_second": 100.0})
    assert len(cell.pages) == 3, "every other step"
    html, words = cell.pages[-1]
    assert "4/10" in html and "loss\N{NO-BREAK SPACE}1.0000" in html and "about 0:04 left" in html
    assert words.startswith("tiny: 0:03 gone, at least 0:04 left"), "of the second stage nothing is known"
    steps.note("half of it is done")
    cell.now += SECONDS
    steps.note("<b>nearly</b>")
    assert "half of it is done" in cell.pages[-1][0] and "&lt;b&gt;nearly" in cell.pages[-1][0]
    screen.close()
    assert "sft: stopped" in cell.pages[-1][1] and "stopped after" in cell.pages[-1][0]


def test_curves_come_from_the_log(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Also what an earlier session logged; a line that is being written is read when it is whole."""
    cell = Cell()
    screen = cell.screen()
    plan = make_plan(ft.Recipe.load(write_recipe({"sft": sft_stage()})).loaded, tmp_path)
    stage = plan.stages[0]
    log = stage.part / "work" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 0, "held_out_loss": 4.5}\n{"step": 1, "loss": 4.0, "grad_norm": 1}\n{"step": 2, "lo')
    screen.open(plan, plan.stages)
    screen.begin(stage)
    steps = screen.progress("sft", 9000, 1)
    cell.now += SECONDS
    steps.update({"step": 2})
    assert screen.curves is not None
    assert screen.curves.points == {"held_out_loss": [(0.0, 4.5)], "loss": [(1.0, 4.0)]}
    with log.open("a") as file:
        file.write('ss": 3.0}\n' + "".join(f'{{"step": {step}, "loss": {step}}}\n' for step in range(3, 9001)))
    stage.folder.mkdir()
    log.rename(stage.folder / "metrics.jsonl")  # the run is finished
    (stage.folder / "manifest.json").write_text('{"format": 1}')
    screen.end(stage)
    screen.close()
    points = screen.curves.points["loss"]
    assert points[:2] == [(1.0, 4.0), (2.0, 3.0)] and points[-1] == (9000.0, 9000.0) and len(points) <= 2000
    assert "<svg" in cell.pages[-1][0] and "held out loss" in cell.pages[-1][0]


def test_a_whole_walk(chain: Chain, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The engine tells the screen what the screen needs; done stages say so."""
    cell = Cell()
    screen = cell.screen()
    loaded = ft.Recipe.load(write_recipe({"sft": sft_stage(), "more": sft_stage(start_from="sft")})).loaded
    run_recipe(loaded, tmp_path / "runs", screen.say, until="sft", screen=screen)
    second = cell.screen()
    run_recipe(loaded, tmp_path / "runs", second.say, screen=second)
    html, words = cell.pages[-1]
    assert "sft: done before" in words and "more: done  2/2" in words and words.startswith("tiny: done in")
    assert "more: done: " in html, "the last lines that were said"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InterruptedRunError("stopped by SIGINT. Run the same command")])
def test_an_interrupt_is_one_line(
    error: BaseException, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no stage was at a step: while a base is loaded, Python's own KeyboardInterrupt comes through."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(walking, "in_notebook", lambda: True)
    monkeypatch.setattr(walking, "run_recipe", interrupted)
    monkeypatch.setattr(screen, "_cell", lambda: lambda html, words: None)
    with pytest.raises(InterruptedRunError, match=r"^stopped[^.]*\. Run this cell again to go on from there$") as told:
        ft.run(write_recipe({"sft": sft_stage()}))
    assert told.value.__context__ is None


def test_not_everything_is_a_notebook() -> None:
    assert not in_notebook()


def test_yaml_in_colour_is_still_text() -> None:
    shown = yaml_code("a: <b>\n  - c.d: 1\nplain <i> text")
    assert '<span style="color:var(--ft-1)">a</span>: &lt;b&gt;' in shown
    assert '  - <span style="color:var(--ft-1)">c.d</span>: 1' in shown and "plain &lt;i&gt; text" in shown


def test_errors_are_one_line_in_a_notebook() -> None:
    assert InputError("what, where, what next")._render_traceback_() == ["InputError: what, where, what next"]
    with pytest.raises(InputError):
        raise InputError("and everywhere else they are errors like others")

"""`finetune chat` as a user types it, and as a script uses it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from chat_lab import LETTERS, PLAIN, Lab, by_heart, lab, questions, tiny_base, walk_in
from rich.console import Console
from stage_recipes import write_jsonl

from finetune.chat.model import Answering, Reply
from finetune.chat.screen import visible
from finetune.chat.talk import COMMANDS, Leave, Redraw, Talk
from finetune.cli.main import main
from finetune.errors import InputError
from finetune.shapes import Completion, Dialog, Message

__all__ = ["lab", "tiny_base"]

QUESTION = "What is 3?"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command with these lines on its input: (exit code, out, err)."""

    def run(lines: str, *args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        capfd.readouterr()
        code = main(["chat", *(str(arg) for arg in args)])
        return code, *capfd.readouterr()

    return run


def test_a_line_from_a_pipe_is_answered(lab: Lab, piped) -> None:
    code, out, err = piped(f"{QUESTION}\n", lab.runs["plain"])
    assert (code, out) == (0, f"{PLAIN}\n")
    assert "base: " in err and f"plain: {lab.runs['plain']}" in err
    code, out, _ = piped(f"\n{QUESTION}", lab.runs["plain"], "--against", "base", "--max-new-tokens", "5")
    name, answer, other, *rest = out.splitlines()
    assert (name, answer, other) == ("plain:", PLAIN[: len(answer)], "base:") and rest


def test_a_recipes_stage(lab: Lab, piped) -> None:
    recipe, runs = lab.folder / "recipe.yaml", ("--runs", lab.folder / "runs")
    assert piped(QUESTION, recipe, "--stage", "letters", *runs)[:2] == (0, f"{LETTERS}\n")
    code, out, _ = piped(QUESTION, recipe, "--stage", "letters", "--against", "plain", *runs)
    assert out.splitlines() == ["letters:", LETTERS, "plain:", PLAIN]
    for args, words in [
        ((), "say which stage with --stage; done are letters, plain"),
        (("--stage", "leters"), "has no stage 'leters'; it has letters, plain, helpful, best"),
        (("--stage", "helpful"), "scores answers and writes none"),
        (("--stage", "plain", "--set", "seed=3"), "stage plain of"),
    ]:
        code, out, err = piped(QUESTION, recipe, *args, *runs)
        assert code == 2 and out == "" and words in err


def test_wrong_use(lab: Lab, piped, tmp_path: Path) -> None:
    plain = lab.runs["plain"]
    for args, words in [
        ((tmp_path / "none",), "no such run or recipe"),
        ((lab.runs["helpful"],), "scores answers and writes none"),
        ((plain, "--stage", "plain"), "--stage belongs to a recipe"),
        ((plain, "--against", "nobody"), "no such run or recipe: nobody"),
        ((plain, "--against", plain), "give each run once"),
        ((plain, "--temperature", "-1"), "Invalid value for '--temperature'"),
        ((plain, "--top-p", "0"), "Invalid value for '--top-p'"),
        ((lab.base, "--against", "base"), "stands alone"),
    ]:
        code, out, err = piped(QUESTION, *args)
        assert code == 2 and out == "" and words in err, (args, err)
    code, out, err = piped(f"{QUESTION}\n/prefer left\n{QUESTION}", plain)
    assert code == 2 and out == f"{PLAIN}\n" and "Error: line 2: one model answers: begin with --against" in err


def test_lines_are_a_conversation_and_commands_work(lab: Lab, piped, tmp_path: Path) -> None:
    pairs, rows = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl"
    script = f"""{QUESTION}
/prefer right
\"\"\"What is
5?\"\"\"
/save {rows}
/undo
/new
What \\
is 7?
/prefer tie
/again
/save {rows}
/quit
never asked"""
    code, out, err = piped(
        script, lab.runs["letters"], "--against", lab.runs["plain"], "--pairs", pairs, "--system", "S"
    )
    assert code == 0 and out.count("letters:") == 4 and "never" not in out
    (pair,) = map(json.loads, pairs.read_text(encoding="utf-8").splitlines())
    system = {"role": "system", "content": "S"}
    assert pair["prompt"] == [system, {"role": "user", "content": QUESTION}]
    assert (pair["chosen_model"], pair["rejected_model"]) == ("plain", "letters")
    first, second = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [turn["content"] for turn in first[:4]] == ["S", QUESTION, pair["chosen"][0]["content"], "What is\n5?"]
    assert len(first) == 5 and len(second) == 3 and second[1]["content"] == "What \nis 7?"
    assert pairs.with_name("pairs.ties.jsonl").is_file()
    assert "at temperature 0.8, for this once" in err and "taken back: What is" in err


def test_what_is_saved_is_learnt_from(lab: Lab, piped, tmp_path: Path) -> None:
    piped(f"{QUESTION}\nWhat is 5?\n/save {tmp_path / 'rows.jsonl'}", lab.runs["plain"])
    found = walk_in(tmp_path, lab.base, {"sft": by_heart("rows.jsonl", steps=1)})
    manifest = json.loads((found.runs["sft"] / "manifest.json").read_text())
    assert manifest["data"]["sources"][0]["format"] == "messages (detected)" and manifest["data"]["rows"] == 1


def test_a_template_without_conversations(lab: Lab, piped, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", questions([PLAIN]))
    own = walk_in(tmp_path, lab.base, {"sft": by_heart("rows.jsonl")}, {"template": "plain"})
    script = f"What is 3?\nWhat is 5?\n/save {tmp_path / 'kept.jsonl'}"
    code, out, err = piped(script, own.runs["sft"])
    assert (code, out) == (0, f"{PLAIN}\n{PLAIN}\n") and "2 rows of prompt and completion" in err
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert kept[1] == {"prompt": "What is 5?", "completion": PLAIN}
    assert "has no system prompt" in piped("x", own.runs["sft"], "--system", "S")[2]


# The conversation by itself


def a_talk(tmp_path: Path, names: Sequence[str] = ("left", "right"), **changes) -> Talk:
    settings = {"names": tuple(names), "chat": True, "system": None, "settings": Answering(), "pairs": tmp_path / "p"}
    return Talk(**{**settings, **changes})


def replies(*texts: str) -> list[Reply]:
    return [Reply(text, True, 3, 2) for text in texts]


def test_both_answer_the_conversation_that_goes_on(tmp_path: Path) -> None:
    talk = a_talk(tmp_path, system="S")
    talk.answered("one", replies("L1", "R1"))
    asked = talk.asked("two")
    assert isinstance(asked, Dialog) and [m.content for m in asked.messages] == ["S", "one", "L1", "two"]
    assert talk.command("/prefer right").endswith("the conversation goes on with right's")
    assert [m.content for m in talk.asked("two").messages] == ["S", "one", "R1", "two"]
    with pytest.raises(InputError, match="judged already"):
        talk.command("/prefer left")
    assert talk.command("/system none") == "system prompt from now on: none"
    assert talk.asked("two").messages[0] == Message("user", "one")
    assert isinstance(a_talk(tmp_path, chat=False).asked("x"), Completion)


def test_commands(tmp_path: Path) -> None:
    talk = a_talk(tmp_path, ["one"])
    for line, words in [
        ("/undo", "nothing was said"), ("/again", "nothing was asked"), ("/save", "say /save FILE"),
        ("/save x", "nothing was said"), ("/temperature hot", "takes a number"), ("/temperature nan", "takes a number"),
        ("/temperature", "say /temperature NUMBER"), ("/prefer left", "one model answers"),
        ("/undoo", "did you mean '/undo'"), ("/", "/help lists"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            talk.command(line)
    assert "none" in talk.command("/system") and talk.command("/system Be.") and talk.system == "Be."
    assert "0.5" in talk.command("/temperature 0.5") and talk.settings.temperature == 0.5
    with pytest.raises(Leave):
        talk.command("/quit")
    talk.answered("q", replies("a"))
    with pytest.raises(Redraw):
        talk.command("/again")
    question, settings = talk.again()
    assert question == "q" and settings.seed == 1 and settings.temperature == 0.5 and not talk.turns
    assert all(name in talk.command("/help") for name in COMMANDS)
    with pytest.raises(InputError, match="No such file"):
        talk.answered("q", replies("a"))
        talk.command(f"/save {tmp_path}/none/x")


def test_control_characters_do_not_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\x07\x9b\n\té🦙") == "a\\x1b[2Jb\\x07\\x9b\n\té🦙"


# A terminal


class Terminal:
    """The command in a pseudo-terminal, so wide."""

    def __init__(self, folder: Path, columns: int, *args: str | Path) -> None:
        self.master, slave = pty.openpty()
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": str(columns), "LINES": "24", "TERM": "xterm",
            "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        command = [sys.executable, "-m", "finetune.cli.main", "chat", *(str(arg) for arg in args)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def comes(self, words: str, seconds: float) -> bool:
        """Read until these words are there; False where they do not come in time."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            if not select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
                return False
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                return words in self.seen
        return True

    def until(self, words: str, seconds: float = 60.0) -> str:
        """Read until these words come; returns what came up to there."""
        assert self.comes(words, seconds), f"{words!r} did not come; seen: {self.seen[-2000:]!r}"
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.mark.slow
def test_at_a_terminal(lab: Lab, tmp_path: Path) -> None:
    """Side by side, Ctrl-C, commands, Ctrl-D; and nothing is left in the folder that was not asked for."""
    terminal = Terminal(tmp_path, 100, lab.runs["plain"], "--against", "base", "--max-new-tokens", "60")
    try:
        greeting = terminal.until("Ctrl-D leaves")
        assert "plain and base side by side; temperature 0, the most probable words" in greeting
        terminal.until("> ")
        terminal.send(f"{QUESTION}\n")
        shown = terminal.until("base: ")  # the line of counts
        assert "plain" in shown and PLAIN in shown and "tokens, " in shown
        terminal.until("> ")
        terminal.send("/nope\n")
        terminal.until("no command /nope")
        terminal.until("> ")
        for _ in range(20):  # Python does not hear one that comes just before it begins to wait for a key
            terminal.process.send_signal(signal.SIGINT)
            if terminal.comes("Ctrl-D leaves", 1.0):
                break
        terminal.until("Ctrl-D leaves")
        terminal.send(f"/prefer left\n{QUESTION}\n")
        terminal.until("appended to preferences.jsonl")
        terminal.until("base: ")
        terminal.until("> ")
        terminal.send("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preferences.jsonl"]


def test_ctrl_c_stops_the_answer_and_not_the_chat(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.chat.model import open_chat
    from finetune.chat.terminal import at_a_terminal

    model = open_chat({"plain": lab.runs["plain"]}, say=lambda line: None)
    stream, interrupted = model.stream, []

    def interrupting(asked, names, settings):
        for number, piece in enumerate(stream(asked, names, settings)):
            yield piece
            if number == 2 and not interrupted:
                interrupted.append(piece)
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(model, "stream", interrupting)
    lines = iter([QUESTION, QUESTION])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    out = Console(file=io.StringIO(), width=60, force_terminal=False)
    talk = Talk(("plain",), True, None, Answering(max_new_tokens=40), tmp_path / "p")
    at_a_terminal(model, talk, out)
    told = out.file.getvalue()
    assert "stopped; the question is not part of the conversation" in told and told.count(PLAIN) == 1
    assert [turn.question for turn in talk.turns] == [QUESTION]


@pytest.mark.parametrize("width", [60, 100])
def test_side_by_side_where_there_is_room(lab: Lab, width: int) -> None:
    from finetune.chat.model import open_chat
    from finetune.chat.screen import Screen

    model = open_chat({name: lab.runs[name] for name in ("letters", "plain")}, say=lambda line: None)
    out = Console(file=io.StringIO(), width=width, height=10, force_terminal=True, color_system=None)
    asked = Dialog((Message("user", QUESTION),))
    found = Screen(out, plain=False).show(
        lambda names: model.stream(asked, names, Answering(max_new_tokens=40)), ("letters", "plain"), lambda: False
    )
    assert [reply.text for reply in found or []] == [LETTERS, PLAIN]
    lines = out.file.getvalue().splitlines()
    together = any("letters" in line and "plain" in line for line in lines)
    assert together == (width >= 80)
    assert any(PLAIN in line for line in lines) and any(LETTERS in line for line in lines)

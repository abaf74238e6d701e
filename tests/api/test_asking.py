"""Runs that answer: one, several, against each other; and reward models that score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from api_chain import Chain
from stage_recipes import reward_stage, train, write_jsonl

import finetune as ft
from finetune.errors import InputError

ASKED = "What is 3?"
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def chat(chain: Chain) -> ft.Chat:
    return ft.load({"sft": chain.results["sft"], "dpo": chain.folder("dpo")})


def test_one_answer(chain: Chain, chat: ft.Chat) -> None:
    answer = chat(ASKED, **SHORT)
    assert isinstance(answer, str) and answer.name == "sft" and answer.prompt == ASKED
    assert 0 < answer.tokens <= 8 and answer.prompt_tokens > 0 and answer.finished in (True, False)
    assert answer == ft.load(chain.results["sft"])(ASKED, **SHORT), "the same alone as beside another"
    assert chat.names == ("sft", "dpo", "base")
    assert ASKED in answer._repr_html_() and "sft" in repr(chat)


def test_what_can_be_asked(chat: ft.Chat) -> None:
    """A text, messages and rows of data files are the same question."""
    messages = [{"role": "user", "content": ASKED}]
    wanted = chat(ASKED, **SHORT)
    for prompt in (messages, {"prompt": ASKED}, {"messages": messages}, {"prompt": ASKED, "completion": "It is 3."}):
        assert chat(prompt, **SHORT).prompt_tokens == wanted.prompt_tokens or "completion" in prompt
    longer = chat([{"role": "system", "content": "Be short."}, *messages], **SHORT)
    assert longer.prompt_tokens > wanted.prompt_tokens
    with pytest.raises(InputError, match="ends with the user's"):
        chat([{"role": "system", "content": "Be short."}])
    with pytest.raises(InputError, match="field"):
        chat({"question": ASKED})
    with pytest.raises(InputError, match="takes a list of prompts"):
        chat.answer(ASKED)
    with pytest.raises(InputError, match="nobody here is called 'dop'"):
        chat(ASKED, of="dop")


def test_several_answers(chat: ft.Chat) -> None:
    found = chat.answer([ASKED, "What is 4?"], of="dpo", temperature=1.0, samples=3, **SHORT)
    assert [len(answer.samples) for answer in found] == [3, 3] and found[0].samples[0] == found[0]
    assert len(set(found[0].samples)) > 1 and {answer.name for answer in found} == {"dpo"}
    again = chat.answer([ASKED], of="dpo", temperature=1.0, samples=3, **SHORT)[0]
    assert again.samples == found[0].samples, "the same seed"
    assert chat.answer([ASKED], of="dpo", temperature=1.0, samples=3, seed=1, **SHORT)[0].samples != again.samples


def test_streams_are_the_answers(chat: ft.Chat) -> None:
    pieces = [*chat.stream(ASKED, of=["dpo", "base"], **SHORT)]
    for name in ("dpo", "base"):
        assert "".join(piece for piece in pieces if piece.name == name) == chat(ASKED, of=name, **SHORT)
        assert [piece.done for piece in pieces if piece.name == name][-1]
    assert "".join(chat.stream(ASKED, **SHORT)) == chat(ASKED, **SHORT)


def test_compare(chain: Chain, tmp_path: Path) -> None:
    results = chain.results
    found = ft.compare(results["sft"], results["dpo"], [ASKED, {"prompt": "What is <b>4</b>?"}], **SHORT)
    assert found.names == ("sft", "dpo") and found.rows[0]["prompt"] == ASKED
    assert found.rows[0]["sft"] == ft.load(results["sft"])(ASKED, **SHORT)
    assert 0 <= found.same <= 2 and list(found.frame().columns) == ["prompt", "sft", "dpo"]
    page = found._repr_html_()
    assert "&lt;b&gt;4" in page and "<b>4" not in page
    assert "<mark" in page or found.same == 2
    lines = found.save(tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(found.rows)
    assert f"> {ASKED}\nsft: " in repr(found)


def test_compare_with_the_base(chain: Chain) -> None:
    found = ft.compare(chain.results["sft"], "base", [[{"role": "user", "content": ASKED}]], **SHORT)
    assert found.names == ("sft", "base") and found.rows[0]["messages"][0]["content"] == ASKED
    assert found.rows[0]["sft"] != found.rows[0]["base"] and "What is 3?" in repr(found)


def test_each_run_is_asked_with_its_own_system_prompt(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(chain.folder("dpo"), other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["recipe"]["model"]["system"] = "Answer in French, and at length, whatever you are asked."
    (other / "manifest.json").write_text(json.dumps(manifest))
    asked = ["What is 3?", "What is 4?"]
    found = ft.compare(chain.results["sft"], other, asked, **SHORT)
    alone = ft.load(other).answer(asked, **SHORT)
    assert [row[found.names[1]] for row in found.rows] == [str(answer) for answer in alone]


def test_an_empty_answer_is_shown_as_one() -> None:
    shown = ft.Comparison(("sft", "dpo"), [{"prompt": "Say nothing.", "sft": "", "dpo": "No."}])._repr_html_()
    assert ">sft<" in shown and "(nothing)" in shown


def test_reward_models_score(chain: Chain) -> None:
    """A trained reward model likes what its pairs prefer: answers that begin with It."""
    reward = chain.results["helpful"]
    with pytest.raises(InputError, match=r"ft\.load_scorer"):
        ft.load(reward)
    scorer = ft.load_scorer(reward)
    good, bad = scorer.score_all(["What is 5?"], [["It is 5.", "No 5."]])[0]
    assert good > bad and scorer.score("What is 5?", "It is 5.") == pytest.approx(good, abs=1e-5)
    with pytest.raises(InputError, match="only reward models score"):
        ft.load_scorer(chain.results["sft"])
    with pytest.raises(InputError, match="each prompt needs a list"):
        scorer.score_all([ASKED], [])


def test_reward_models_of_templates_without_turns_score(tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f" It is {n}.", "rejected": f" No {n}."} for n in range(8)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    model = {"base": tiny_base, "load_in": "fp32", "max_length": 128, "template": "plain"}
    stages = {"helpful": reward_stage(held_out={"fraction": 0.0}, train=train(max_steps=1))}
    found = ft.run(
        ft.Recipe.from_dict({"name": "plain", "model": model, "stages": stages}, tmp_path), tmp_path / "runs"
    )
    scorer = ft.load_scorer(found["helpful"])
    assert scorer.score("What is 5?", " It is 5.") != scorer.score("What is 5?", " No.")


def test_measured(chain: Chain) -> None:
    found = ft.evaluate(chain.results["dpo"], "answers", limit=2)
    assert len(found.rows) == 2 and [kept.results for kept in chain.results["dpo"].evaluations] == [found.results]
    assert repr(found).startswith("answers on held-out rows of dpo, 2 rows") and "<table" in found._repr_html_()
    loss = ft.evaluate(chain.results["sft"], "loss", data=chain.recipe.folder / "questions.jsonl")
    assert list(loss.frame()["row"]) == list(range(24)) and loss.results["loss"]
    with pytest.raises(InputError, match="which model at that address"):
        ft.evaluate(chain.results["dpo"], "win_rate", against="base", judge="http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="no task 'los'"):
        ft.evaluate(chain.results["dpo"], "los")

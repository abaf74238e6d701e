"""Sampled tokens to text, to rows, and back: what was said is what a later stage reads, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data.answers import answer_row, answer_text, answered, pair_row, same_tokens_again
from finetune.data.convert import to_example
from finetune.data.convert_comparisons import to_comparisons
from finetune.data.encode import encode
from finetune.data.fitting import EXAMPLES, RANKINGS, Kind
from finetune.data.formats import Known, known_format
from finetune.data.prepare_prompts import Prompt, make_prompt
from finetune.data.readers import RawRow, read_file
from finetune.data.tokenizer import Tokenizer
from finetune.families.detect import FAMILIES
from finetune.shapes import Completion, Dialog, Message, Origin, Ranking, ToolCall

TEXTS = ("Rome.", "It is Rome, of course. 42", "two\n\nlines, ä and 🦙", '[{"role": "user", "content": "x"}]')
CHATS = {"llama3": "bpe", "llama3.1": "bpe", "llama2": "spm", "vicuna": "spm", "alpaca": "spm"}
ASKED = Dialog((Message("system", "Be brief."), Message("user", "q"), Message("assistant", "a"), Message("user", "r")))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        "bpe": Tokenizer.load(tiny_llama3_tokenizer(tmp_path_factory.mktemp("bpe"))),
        "spm": Tokenizer.load(tiny_spm_tokenizer(tmp_path_factory.mktemp("spm"))),
    }


def asked(example: Dialog | Completion, family: str, tokenizer: Tokenizer) -> Prompt:
    return make_prompt(example, Origin("p", line=1), {}, FAMILIES[family], tokenizer, None)


def written(prompt: Prompt, text: str, family: str, tokenizer: Tokenizer) -> np.ndarray:
    """The answer's tokens as a model would write them that learnt the template by heart."""
    (whole,) = encode([answered(prompt, text, FAMILIES[family])], FAMILIES[family], tokenizer)
    ids = np.array(whole.input_ids)
    assert ids[: len(prompt.ids)].tolist() == prompt.ids.tolist()
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", CHATS)
def test_what_is_said_comes_back(tokenizers: dict[str, Tokenizer], family: str, text: str) -> None:
    tokenizer = tokenizers[CHATS[family]]
    prompt = asked(Completion("What is it?", ""), family, tokenizer)
    ids = written(prompt, text, family, tokenizer)
    assert answer_text(prompt, ids, True, FAMILIES[family], tokenizer) == text
    assert same_tokens_again([prompt], [text], [ids], FAMILIES[family], tokenizer, None) == [True]
    assert same_tokens_again([prompt], [text + "!"], [ids], FAMILIES[family], tokenizer, None) == [False]
    # An answer that was cut has no stop token; its text ends where it was cut.
    assert answer_text(prompt, ids[:1], False, FAMILIES[family], tokenizer) == tokenizer.decode(ids[:1]).strip()


@pytest.mark.parametrize("text", [" blue and green", "\nblue", "  blue "])
def test_raw_text_is_exactly_what_follows_the_prompt(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """Decoded alone, sentencepiece would lose the space before the first word."""
    tokenizer, plain = tokenizers["spm"], FAMILIES["plain"]
    prompt = asked(Completion("The sky is", ""), "plain", tokenizer)
    ids = written(prompt, text, "plain", tokenizer)
    assert answer_text(prompt, ids, True, plain, tokenizer) == text
    assert same_tokens_again([prompt], [text], [ids], plain, tokenizer, None) == [True]
    assert answer_row(prompt, text, plain) == {"prompt": "The sky is", "completion": text}


@pytest.mark.parametrize(("folder", "families"), [("llama2", ("llama2", "vicuna", "alpaca")), ("llama3", ("llama3",))])
def test_real_tokenizers(shared: Path, folder: str, families: tuple[str, ...]) -> None:
    tokenizer = Tokenizer.load(shared / "tokenizers" / folder)
    rows = read_file(shared / "data" / "gsm8k_test.jsonl", "gsm8k")
    answers = [str(row.values["answer"]) for row in rows if isinstance(row, RawRow)][:100]
    for family in families:
        prompt = asked(Completion("What is it?", ""), family, tokenizer)
        # After Alpaca's "### Response:" the tokenizer joins ":[" into one word, which no model can write there.
        texts = [text for text in (*TEXTS, *answers) if family != "alpaca" or not text.startswith("[")]
        for text in texts:
            ids = written(prompt, text, family, tokenizer)
            assert answer_text(prompt, ids, True, FAMILIES[family], tokenizer) == text
            assert same_tokens_again([prompt], [text], [ids], FAMILIES[family], tokenizer, None) == [True]


def test_special_tokens_are_no_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    prompt = asked(Completion("q", ""), "llama3", tokenizer)
    marks = [tokenizer.id_of(name) for name in ("<|start_header_id|>", "<|eot_id|>")]
    ids = np.array([*tokenizer.encode_text("yes"), *marks])
    assert answer_text(prompt, ids, True, FAMILIES["llama3"], tokenizer) == "yes"
    assert same_tokens_again([prompt], ["yes"], [ids], FAMILIES["llama3"], tokenizer, None) == [False]


def known(values: dict[str, Any], kind: Kind) -> Known:
    return known_format("auto", {}, [RawRow(values, Origin("d", line=1))], "d", kind)


@pytest.mark.parametrize("text", TEXTS)
def test_rows_are_read_as_prompt_and_answer(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """Of earlier answers nothing is learnt: they belong to the prompt."""
    family = FAMILIES["llama3"]
    prompt = asked(ASKED, "llama3", tokenizers["bpe"])
    row = answer_row(prompt, text, family)
    assert to_example(row, known(row, EXAMPLES)) == answered(prompt, text, family)
    assert [turn.get("weight") for turn in row["messages"]] == [None, None, 0, None, None]
    pair = pair_row(prompt, text, "No.", 0.5, family)
    ((ranking, _),) = to_comparisons(pair, known(pair, RANKINGS))
    assert ranking == Ranking(ASKED, ((Message("assistant", text),), (Message("assistant", "No."),)), margin=0.5)


def test_rows_with_tools(tokenizers: dict[str, Tokenizer]) -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = Message("assistant", "", (ToolCall("f", {}),))
    dialog = Dialog((Message("user", "q"), call, Message("tool", "1")), (tool,))
    prompt = asked(dialog, "llama3.1", tokenizers["bpe"])
    row = answer_row(prompt, "one", FAMILIES["llama3.1"])
    assert to_example(row, known(row, EXAMPLES)) == answered(prompt, "one", FAMILIES["llama3.1"])


def test_a_family_without_turns_has_pairs_too(tokenizers: dict[str, Tokenizer]) -> None:
    prompt = asked(Completion("q", ""), "plain", tokenizers["spm"])
    pair = pair_row(prompt, "yes", "no", 1.0, FAMILIES["plain"])
    ((ranking, _),) = to_comparisons(pair, known(pair, RANKINGS))
    assert ranking.prompt == Dialog((Message("user", "q"),)) and ranking.margin == 1.0

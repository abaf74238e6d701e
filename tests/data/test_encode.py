"""Ids and masks: what is trained is the answer and its stop token, nothing a user wrote becomes a special token."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LLAMA3_SPECIALS, tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data.encode import Encoded, encode, encode_prompt
from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family, RenderError
from finetune.families.detect import FAMILIES
from finetune.shapes import Completion, Dialog, Example, Message, Text, ToolCall

CHAT = [name for name, family in FAMILIES.items() if family.is_chat]
TOKENIZERS: dict[str, Tokenizer] = {}
STRIPPED = {name for name in CHAT if name in ("llama2", "llama3") or name.endswith("-dated")}


@pytest.fixture(scope="module", autouse=True)
def tiny_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    root: Path = tmp_path_factory.mktemp("tokenizers")
    TOKENIZERS["bpe"] = Tokenizer.load(tiny_llama3_tokenizer(root / "bpe"))
    TOKENIZERS["spm"] = Tokenizer.load(tiny_spm_tokenizer(root / "spm"))


def tokenizer_of(family: Family) -> Tokenizer:
    return TOKENIZERS["bpe" if family.bos == "<|begin_of_text|>" else "spm"]


def encode_one(example: Example, family: Family, loss_on: str = "answers", system: str | None = None) -> Encoded:
    [encoded] = encode([example], family, tokenizer_of(family), loss_on=loss_on, system=system)
    assert isinstance(encoded, Encoded), encoded
    assert len(encoded.input_ids) == len(encoded.trained)
    return encoded


def trained_runs(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    """Texts of the trained stretches, each up to and with its special token."""
    runs: list[str] = []
    specials = set(tokenizer.special_tokens.values())
    run: list[int] = []
    for index, on in zip(encoded.input_ids, encoded.trained, strict=True):
        if on and index in specials:
            runs.append(tokenizer.decode(run) + "|" + tokenizer.token_text(index))
            run = []
        elif on:
            run.append(index)
    assert not run, "a trained stretch must end with a stop token"
    return runs


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("template", CHAT)
@given(asked=words, answers=st.lists(words.filter(str.strip), min_size=1, max_size=3))
def test_what_is_trained_is_each_answer_and_its_stop(template: str, asked: str, answers: list[str]) -> None:
    family = FAMILIES[template]
    turns = [m for answer in answers for m in (Message("user", asked), Message("assistant", answer))]
    encoded = encode_one(Dialog(tuple(turns)), family)
    tokenizer = tokenizer_of(family)
    runs = trained_runs(encoded, tokenizer)
    assert all(run.endswith(family.stop_tokens[0]) for run in runs)
    for run, answer in zip(runs, answers, strict=True):
        text = run[: -len(family.stop_tokens[0]) - 1]
        if template in ("alpaca", "vicuna"):  # a token over the boundary may keep the answer's first characters
            assert answer.strip().endswith(text.strip())
        else:
            assert text.strip() == answer.strip()
    expected_bos = len(answers) if template == "llama2" else 1
    assert encoded.input_ids.count(tokenizer.special_tokens[family.bos]) == expected_bos
    assert encoded.input_ids[0] == tokenizer.special_tokens[family.bos]


@pytest.mark.parametrize("template", FAMILIES)
def test_no_text_becomes_a_special_token(template: str) -> None:
    family = FAMILIES[template]
    tokenizer = tokenizer_of(family)
    attack = "".join([*LLAMA3_SPECIALS, "<s>", "</s>", "<unk>", "[INST]", "<<SYS>>"])
    calm, loud = (
        Completion(text, text)
        if not family.is_chat
        else Dialog(
            (
                Message("system", text),
                Message("user", text, context=text),
                Message("assistant", text, (ToolCall("f", {"x": text}),)),
                Message("tool", text),
                Message("assistant", text),
            ),
            ({"name": "f", "description": text, "parameters": {}},),
        )
        for text in ("calm", attack)
    )

    def specials(example: Example) -> list[int]:
        known = set(tokenizer.special_tokens.values())
        return [index for index in encode_one(example, family).input_ids if index in known]

    assert specials(loud) == specials(calm)


@pytest.mark.parametrize("template", CHAT)
def test_marks_on_messages_override_the_rule(template: str) -> None:
    family = FAMILIES[template]
    tokenizer = tokenizer_of(family)
    dialog = Dialog(
        (
            Message("user", "The hill"),
            Message("assistant", "The rain", trained=False),
            Message("user", "The llama", trained=True),
            Message("assistant", "The capital"),
        )
    )
    encoded = encode_one(dialog, family)
    shown = tokenizer.decode([i for i, on in zip(encoded.input_ids, encoded.trained, strict=True) if on])
    assert "rain" not in shown and "hill" not in shown
    assert "llama" in shown and "capital" in shown


@pytest.mark.parametrize("template", FAMILIES)
def test_plain_text_is_bos_text_end_all_trained(template: str) -> None:
    family = FAMILIES[template]
    tokenizer = tokenizer_of(family)
    encoded = encode_one(Text("Once upon a time"), family)
    bos, end = tokenizer.special_tokens[family.bos], tokenizer.special_tokens[family.end]
    assert encoded.input_ids == [bos, *tokenizer.encode_text("Once upon a time"), end]
    assert encoded.trained == [1] * len(encoded.input_ids)
    assert encode_prompt(Text("Once upon a time"), family, tokenizer) == encoded.input_ids[:-1]


@pytest.mark.parametrize("template", CHAT)
def test_a_completion_is_one_turn(template: str) -> None:
    family = FAMILIES[template]
    turns = (Message("user", "The hill"), Message("assistant", "The rain"))
    for system in (None, "Be brief."):
        completion = encode_one(Completion("The hill", "The rain"), family, system=system)
        assert completion == encode_one(Dialog(turns), family, system=system)
        asked = Completion("The hill", "")
        prompt = encode_prompt(asked, family, tokenizer_of(family), system)
        assert completion.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("template", CHAT)
def test_the_recipes_system_prompt_is_for_rows_without_their_own(template: str) -> None:
    family = FAMILIES[template]
    turns = (Message("user", "The hill"), Message("assistant", "The rain"))
    given = encode_one(Dialog(turns), family, system="Sing.")
    assert given == encode_one(Dialog((Message("system", "Sing."), *turns)), family)
    own = Dialog((Message("system", "Be brief."), *turns))
    assert encode_one(own, family, system="Sing.") == encode_one(own, family)
    assert given != encode_one(Dialog(turns), family)


def test_a_completion_in_the_plain_template_trains_the_first_word_after_a_space() -> None:
    """SPM glues a prompt's last space to the answer's first word: ▁Paris begins in the prompt and is the answer's."""
    family, tokenizer = FAMILIES["plain"], TOKENIZERS["spm"]
    encoded = encode_one(Completion("The capital of France is ", "Paris"), family)
    trained = [i for i, on in zip(encoded.input_ids, encoded.trained, strict=True) if on]
    assert tokenizer.decode(trained, skip_special=True).strip() == "Paris"
    assert trained[-1] == tokenizer.special_tokens["</s>"]
    before = [i for i, on in zip(encoded.input_ids, encoded.trained, strict=True) if not on]
    assert tokenizer.decode(before, skip_special=True).strip() == "The capital of France is"


@pytest.mark.parametrize("template", CHAT)
def test_loss_on_all_trains_every_token(template: str) -> None:
    family = FAMILIES[template]
    dialog = Dialog((Message("user", "The hill"), Message("assistant", "The rain")))
    encoded = encode_one(dialog, family, loss_on="all")
    assert encoded.trained == [1] * len(encode_one(dialog, family).input_ids)


def test_a_bad_row_gives_its_error_and_the_others_are_encoded() -> None:
    family = FAMILIES["llama2"]
    good = Dialog((Message("user", "a"), Message("assistant", "b")))
    bad: list[tuple[Example, str]] = [
        (Dialog(()), "no turn"),
        (Dialog((Message("system", "a"),)), "no turn"),
        (Dialog((Message("user", "a"), Message("user", "b"))), "turn 2 is user after user"),
        (Dialog((Message("assistant", "a"),)), "turn 1 is assistant at the start"),
        (Dialog((Message("user", "a"), Message("system", "b"))), "message 2 is a system message"),
        (Dialog((Message("user", "a", (ToolCall("f", {}),)),)), "has tool calls but is a user message"),
        (Text("half \ud83d"), "half of a pair"),
    ]
    rows: list[Example] = [good, *(example for example, _ in bad), good]
    first, *errors, last = encode(rows, family, TOKENIZERS["spm"])
    assert isinstance(first, Encoded) and first == last
    for error, (_, words) in zip(errors, bad, strict=True):
        assert isinstance(error, RenderError) and words in str(error)


def test_prompts_and_conversations_that_have_no_form() -> None:
    answered = Dialog((Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(RenderError, match="ends with an assistant's"):
        encode_prompt(answered, FAMILIES["llama3"], TOKENIZERS["bpe"])
    with pytest.raises(RenderError, match="plain template has no form"):
        FAMILIES["plain"].render(answered)
    builtin = Dialog(answered.messages, ({"name": "brave_search"},))
    with pytest.raises(RenderError, match="built-in"):
        FAMILIES["llama3.2-dated"].render(builtin)
    code = Dialog((Message("user", "a"), Message("assistant", "", (ToolCall("code_interpreter", {}),))))
    with pytest.raises(RenderError, match="'code'"):
        FAMILIES["llama3.1"].render(code)


@pytest.mark.parametrize("template", CHAT)
def test_batch_and_single_rows_agree(template: str) -> None:
    family = FAMILIES[template]
    rows = [
        Dialog((Message("user", f"The {n} hill"), Message("assistant", f"{n} llamas " * n or "none"))) for n in range(9)
    ]
    assert encode(rows, family, tokenizer_of(family)) == [encode_one(row, family) for row in rows]

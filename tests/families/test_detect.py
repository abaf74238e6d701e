"""Detection from config and tokenizer, with its witnesses; errors that say the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.tokenizer import Tokenizer
from finetune.errors import BaseModelError
from finetune.families.detect import FAMILIES, resolve

SPM = {"<unk>": 0, "<s>": 1, "</s>": 2}
CHAT = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA3_0 = {
    token: 128000 + index
    for index, token in enumerate([*CHAT[:2], *(f"<|reserved_special_token_{n}|>" for n in range(5)), *CHAT[2:]])
}
LLAMA3_1 = {
    token: 500 + index
    for index, token in enumerate([*CHAT, "<|finetune_right_pad_id|>", "<|eom_id|>", "<|python_tag|>"])
}
ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config(**values: Any) -> dict[str, Any]:
    base = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "max_position_embeddings": 8192}
    return {**base, "rms_norm_eps": 1e-5, **values}


@pytest.mark.parametrize(
    ("changes", "tokens", "generation", "template", "pad"),
    [
        (
            {"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
            SPM,
            "llama1",
            "alpaca",
            "<unk>",
        ),
        ({"vocab_size": 32000, "max_position_embeddings": 4096}, SPM, "llama2", "llama2", "<unk>"),
        ({"vocab_size": 512, "max_position_embeddings": 512}, SPM, "llama2", "llama2", "<unk>"),
        ({}, LLAMA3_0, "llama3", "llama3", "<|reserved_special_token_2|>"),
        ({}, LLAMA3_1, "llama3", "llama3", "<|finetune_right_pad_id|>"),
        (
            {"rope_scaling": {**ROPE, "factor": 8.0}},
            LLAMA3_1,
            "llama3.1",
            "llama3.1",
            "<|finetune_right_pad_id|>",
        ),
        (
            {"rope_parameters": {**ROPE, "factor": 32.0, "rope_theta": 5e5}},
            LLAMA3_1,
            "llama3.2",
            "llama3.2",
            "<|finetune_right_pad_id|>",
        ),
        ({"vocab_size": 1024}, LLAMA3_1, "llama3.1", "llama3.1", "<|finetune_right_pad_id|>"),
    ],
)
def test_generation_template_and_pad(
    changes: dict[str, Any], tokens: dict[str, int], generation: str, template: str, pad: str
) -> None:
    resolved = resolve(config(**changes), tokens)
    assert (resolved.generation, resolved.family.template, resolved.pad_token) == (generation, template, pad)
    said = "\n".join(resolved.said)
    for word in (generation, template, pad):
        assert word in said


def test_3_1_and_3_3_at_70b_are_told_apart_by_name_only_and_it_is_said() -> None:
    large = config(hidden_size=8192, rope_scaling={**ROPE, "factor": 8.0})
    assert resolve(large, LLAMA3_1, base_name="meta-llama/Llama-3.3-70B-Instruct").generation == "llama3.3"
    unsure = resolve(large, LLAMA3_1, base_name="my/finetune")
    assert unsure.generation == "llama3.1"
    assert "3.3" in unsure.said[0] and "one config" in unsure.said[0]


@pytest.mark.parametrize(
    ("own", "name", "template"),
    [
        ("{{ '[INST] ' + m }}", "", "llama2"),
        ("USER: {{ m }} ASSISTANT:", "", "vicuna"),
        ("### Instruction:\n{{ m }}", "", "alpaca"),
        ("<|im_start|>{{ m }}", "", "llama2"),
        (None, "lmsys/vicuna-7b-v1.5", "vicuna"),
        ("{{ '[INST] ' + m }}", "lmsys/vicuna-7b-v1.5", "llama2"),
    ],
)
def test_the_bases_own_template_is_a_witness_and_its_name_a_hint(own: str | None, name: str, template: str) -> None:
    resolved = resolve(config(vocab_size=32000), SPM, base_name=name, base_chat_template=own)
    assert resolved.family.template == template
    if own is not None and "im_start" in own:
        assert "not followed" in "\n".join(resolved.said)


def test_an_instruct_base_with_the_hub_template_is_trained_on_it() -> None:
    own = "Cutting Knowledge Date: December 2023 <|start_header_id|>"
    scaled = config(rope_scaling={**ROPE, "factor": 8.0})
    assert resolve(scaled, LLAMA3_1, base_chat_template=own).family.template == "llama3.1-dated"
    assert resolve(scaled, LLAMA3_1, "llama3.1", base_chat_template=own).family.template == "llama3.1"


@pytest.mark.parametrize("template", FAMILIES)
def test_every_template_on_every_base_is_served_or_refused_with_a_way_out(template: str) -> None:
    for changes, tokens in (({"vocab_size": 32000}, SPM), ({}, LLAMA3_0), ({"vocab_size": 1024}, LLAMA3_1)):
        try:
            resolved = resolve(config(**changes), tokens, template)
        except BaseModelError as error:
            assert "with this base: " in str(error) and template in str(error)
            assert template.startswith("llama")
            continue
        family = resolved.family
        assert family.template == template
        assert resolved.pad_token not in (*family.eos_tokens, *family.stop_tokens, family.bos, family.end)
        assert {*family.needs, *family.stop_tokens, *family.eos_tokens, family.bos, family.end} <= set(tokens)
        assert set(family.stop_tokens) <= set(family.eos_tokens)
        assert family.licence == {"llama1": "other"}.get(resolved.generation, resolved.generation)


@pytest.mark.parametrize(
    ("changes", "tokens", "template", "words"),
    [
        ({"model_type": "mistral"}, SPM, "auto", "model_type is 'mistral'"),
        ({}, {"<|endoftext|>": 0}, "auto", "neither <s> and </s>"),
        ({}, {"<|begin_of_text|>": 0, "<|end_of_text|>": 1}, "auto", "no chat tokens"),
        ({"vocab_size": 32000}, SPM, "llama3", "needs <|begin_of_text|>"),
        ({}, LLAMA3_0, "llama3.1", "needs <|eom_id|>"),
        ({"vocab_size": 32000}, SPM, "chatml", "no template 'chatml'"),
        ({"vocab_size": 32000}, {"<s>": 1, "</s>": 2}, "auto", "no token to pad with"),
    ],
)
def test_refusals(changes: dict[str, Any], tokens: dict[str, int], template: str, words: str) -> None:
    with pytest.raises(BaseModelError, match="(?s)" + words.replace("|", r"\|")):
        resolve(config(**changes), tokens, template)


def test_real_stories_model_and_real_tokenizers(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    found = resolve(
        json.loads((folder / "config.json").read_text()), Tokenizer.load(folder).special_tokens, base_name=folder.name
    )
    assert (found.family.template, found.pad_token) == ("llama2", "<unk>")
    assert any("512 words" in line for line in found.said)
    specials = Tokenizer.load(shared / "tokenizers" / "llama3").special_tokens
    found = resolve(config(rope_scaling={**ROPE, "factor": 8.0}), specials)
    assert (found.generation, found.family.template) == ("llama3.1", "llama3.1")
    assert specials[found.pad_token] == 128004

"""Which family a base belongs to, from its config and tokenizer; every conclusion is said aloud with its witness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import BaseModelError
from finetune.families.base import GENERATIONS, Family
from finetune.families.llama1 import ALPACA, PLAIN
from finetune.families.llama2 import LLAMA2
from finetune.families.llama3 import LLAMA3
from finetune.families.llama3_1 import LLAMA3_1, LLAMA3_1_DATED
from finetune.families.llama3_2 import LLAMA3_2, LLAMA3_2_DATED
from finetune.families.llama3_3 import LLAMA3_3, LLAMA3_3_DATED
from finetune.families.vicuna import VICUNA

FAMILIES: Mapping[str, Family] = {
    family.template: family
    for family in (
        PLAIN,
        ALPACA,
        VICUNA,
        LLAMA2,
        LLAMA3,
        LLAMA3_1,
        LLAMA3_2,
        LLAMA3_3,
        LLAMA3_1_DATED,
        LLAMA3_2_DATED,
        LLAMA3_3_DATED,
    )
}
"""By the recipe's `model.template`."""

META_VOCABULARY = {"llama1": (32000,), "llama2": (32000, 32016), "llama3": (128256,)}
_LLAMA3_BY_ROPE_FACTOR = {8.0: "llama3.1", 32.0: "llama3.2"}


@dataclass(frozen=True)
class Resolved:
    """family: the template on the base's generation. said: lines to print, what was concluded and from what."""

    family: Family
    generation: str
    pad_token: str
    said: tuple[str, ...]


def resolve(
    config: Mapping[str, Any],
    special_tokens: Mapping[str, int],
    template: str = "auto",
    *,
    base_name: str = "",
    base_chat_template: str | None = None,
) -> Resolved:
    """Generation, template and pad token of a base.

    config: its config.json. special_tokens: name -> id, of its tokenizer. template: the recipe's. base_name: a hint
    only, used where the config cannot tell. Raises BaseModelError: no LLaMA text model; a template that needs tokens
    the tokenizer lacks; no token to pad with.
    """
    if (kind := config.get("model_type", "llama")) != "llama":
        raise BaseModelError(
            f"the base's model_type is {kind!r}, not 'llama': finetune serves LLaMA text models (LLaMA 1, Llama 2, 3, "
            "3.1, 3.2 1B/3B, 3.3 and what is built on them)"
        )
    if template != "auto" and template not in FAMILIES:
        raise BaseModelError(f"no template {template!r}; there are auto, {', '.join(FAMILIES)}")
    generation, said = _generation(config, special_tokens, base_name)
    if template == "auto":
        chosen, why = _template(generation, base_chat_template, base_name)
        said.append(f"template {chosen} ({FAMILIES[chosen].about}): {why}")
    else:
        chosen = template
        said.append(f"template {chosen} ({FAMILIES[chosen].about}): set in the recipe")
    family = FAMILIES[chosen].on(generation)
    _check_tokens(family, special_tokens)
    pad = _pad(family, special_tokens)
    said.append(f"pad token {pad} (id {special_tokens[pad]}), never one that ends a text")
    said.append(f"an assistant turn ends with {' or '.join(family.stop_tokens)}, which is trained")
    return Resolved(family, generation, pad, tuple(said))


def _generation(config: Mapping[str, Any], special_tokens: Mapping[str, int], base_name: str) -> tuple[str, list[str]]:
    if all(token in special_tokens for token in LLAMA3.needs):
        generation, why = _llama3_generation(config, special_tokens, base_name)
    elif "<s>" in special_tokens and "</s>" in special_tokens:
        generation, why = _sentencepiece_generation(config)
    elif "<|begin_of_text|>" in special_tokens and "<|end_of_text|>" in special_tokens:
        raise BaseModelError(
            "the base's tokenizer has <|begin_of_text|> but no chat tokens such as <|start_header_id|> and <|eot_id|>: "
            "take the tokenizer files of the generation's release on the hub"
        )
    else:
        raise BaseModelError(
            "the base's tokenizer has neither <s> and </s> (LLaMA 1, Llama 2) nor <|begin_of_text|> and "
            "<|start_header_id|> (Llama 3): put the LLaMA checkpoint's own tokenizer files beside it"
        )
    said = [f"generation {generation}: {why}"]
    words = config.get("vocab_size")
    expected = META_VOCABULARY["llama3" if generation.startswith("llama3") else generation]
    if words is not None and words not in expected:
        said.append(
            f"a vocabulary of {words} words is none of Meta's for {generation}: a model of its own, or one with words "
            "added; tokens are looked up by name, and its licence is its maker's to say"
        )
    elif words == 32016:
        said.append("a vocabulary of 32016 words: Code Llama, a Llama 2 (its 70B instruct has another chat format)")
    return generation, said


def _llama3_generation(config: Mapping[str, Any], special_tokens: Mapping[str, int], base_name: str) -> tuple[str, str]:
    tokens = "the tokenizer has Llama 3's chat tokens"
    kind, factor = _rope(config)
    if kind == "llama3":
        generation = _LLAMA3_BY_ROPE_FACTOR.get(factor, "llama3.1")
        why = f"{tokens}, the config Llama 3's scaled positions with factor {factor:g}"
        if generation == "llama3.2":
            return generation, f"{why}, as only 3.2 1B and 3B"
        if config.get("hidden_size") == 8192 and "3.3" in base_name:
            return "llama3.3", f"{why}; 3.1 70B and 3.3 70B have one config, the name {base_name!r} says 3.3"
        if config.get("hidden_size") == 8192:
            return generation, f"{why}; 3.1 70B and 3.3 70B have one config: if it is 3.3, set model.template: llama3.3"
        return generation, why
    if config.get("vocab_size") != 128256 and all(token in special_tokens for token in LLAMA3_1.needs):
        return "llama3.1", f"{tokens} and 3.1's <|eom_id|> and <|python_tag|>; positions are not scaled"
    return "llama3", f"{tokens}, and positions are not scaled"


def _rope(config: Mapping[str, Any]) -> tuple[str, float]:
    """(rope type, factor): `rope_parameters` in transformers 5, `rope_scaling` before."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return str(rope.get("rope_type", rope.get("type", "default"))), float(rope.get("factor", 1))


def _sentencepiece_generation(config: Mapping[str, Any]) -> tuple[str, str]:
    length, eps = config.get("max_position_embeddings"), config.get("rms_norm_eps")
    seen = f"the tokenizer has <s> and </s>, the config {length} positions and rms_norm_eps {eps}"
    if eps == 1e-6 and length is not None and length <= 2048:
        return "llama1", f"{seen}, as LLaMA 1 (Llama 2: 4096 and 1e-05)"
    return "llama2", f"{seen}, as Llama 2 or a model of its design (LLaMA 1: 2048 and 1e-06)"


def _template(generation: str, own: str | None, base_name: str) -> tuple[str, str]:
    """The template of `auto`, and why."""
    if generation.startswith("llama3"):
        if own is not None and "Cutting Knowledge Date" in own and generation != "llama3":
            return f"{generation}-dated", "the base's own chat template writes these dates, and servers will send them"
        if own is not None and "<|start_header_id|>" not in own:
            return generation, "the generation's; the base carries another chat template, which is not followed"
        return generation, "the generation's"
    if own is not None:
        for mark, name in (("[INST]", "llama2"), ("ASSISTANT:", "vicuna"), ("### Instruction", "alpaca")):
            if mark in own:
                return name, f"the base's own chat template has {mark}"
        own_words = "; the base carries a chat template that none of ours writes, which is not followed"
    else:
        own_words = ""
        for name in ("vicuna", "alpaca"):
            if name in base_name.lower():
                return name, f"a guess from the name {base_name!r}; set model.template if it is wrong"
    if generation == "llama1":
        return "alpaca", f"LLaMA 1 has no chat format of its own, and this is the one most trained on it{own_words}"
    return "llama2", f"the generation's{own_words}"


def _check_tokens(family: Family, special_tokens: Mapping[str, int]) -> None:
    missing = [token for token in family.needs if token not in special_tokens]
    if not missing:
        return
    possible = [
        name
        for name, other in FAMILIES.items()
        if all(token in special_tokens for token in other.on(family.generation).needs)
    ]
    raise BaseModelError(
        f"model.template {family.template} needs {', '.join(missing)}, which the base's tokenizer does not have; with "
        f"this base: {', '.join(possible)}"
    )


def _pad(family: Family, special_tokens: Mapping[str, int]) -> str:
    for token in GENERATIONS[family.generation].pads:
        if token in special_tokens and token not in (*family.eos_tokens, family.bos):
            return token
    raise BaseModelError(
        "the base's tokenizer has no token to pad with: padding with one that ends a text would unlearn stopping. It "
        f"should have {family.pads[0]}: take the tokenizer files of the generation's release"
    )

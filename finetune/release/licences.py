"""Meta's licences, one entry a generation: what each asks of whoever publishes something made with its models.

Source: the licence texts that Meta ships with the models; quoted words are theirs. The texts themselves are not in
this project: a release takes the copy from the base's own folder, and `check_copy` looks for the quoted words in it.
An adapter is no word of these licences. It is trained from the model, so it is treated as a derivative work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import InputError


@dataclass(frozen=True)
class Licence:
    """id: the hub's, except llama1 (the hub has none). released: the date that the 700 million users count from.

    notice: the line of the Notice file. built_with: what has to be displayed. begins_with: how the name of a published
    model must begin; by_outputs: also of one that only learnt from the model's output. others_may_learn: its output may
    train models of other families. eu_multimodal: the use policy leaves people in the European Union out of the rights
    to its multimodal models. commercial: may be used for more than research.
    """

    id: str
    model: str
    name: str
    released: str | None
    notice: str | None
    built_with: str | None
    begins_with: str | None
    by_outputs: bool
    others_may_learn: bool
    policy: str | None
    eu_multimodal: bool
    commercial: bool = True


def _community(
    id: str,
    number: str,
    released: str,
    policy: str,
    *,
    meta: str = "",
    built_with: str | None = "Built with Llama",
    begins_with: str | None = "Llama",
    by_outputs: bool = True,
    others_may_learn: bool = True,
    eu_multimodal: bool = False,
) -> Licence:
    model = f"{meta}Llama {number}"
    name = f"{model} Community License"
    line = f"{model} is licensed under the {name}, Copyright © Meta Platforms, Inc. All Rights Reserved."
    if id == "llama2":  # the same line, but as that licence writes it
        line = line.replace("the Llama 2", "the LLAMA 2").replace("©", "(c)")
    return Licence(
        id, model, name, released, line, built_with, begins_with, by_outputs, others_may_learn, policy, eu_multimodal
    )


LICENCES: Mapping[str, Licence] = {
    licence.id: licence
    for licence in (
        # Its weights may not be passed on, so what contains them is not published: adapters only. Its text is given to
        # those who ask Meta for the weights, and nothing of it beyond that and "non-commercial research" is taken here.
        Licence(
            id="llama1",
            model="LLaMA",
            name="LLaMA non-commercial licence",
            released=None,
            notice=None,
            built_with=None,
            begins_with=None,
            by_outputs=False,
            others_may_learn=True,
            policy=None,
            eu_multimodal=False,
            commercial=False,
        ),
        _community(
            "llama2",
            "2",
            "July 18, 2023",
            "https://ai.meta.com/llama/use-policy",
            built_with=None,
            begins_with=None,
            by_outputs=False,
            others_may_learn=False,
        ),
        _community(
            "llama3",
            "3",
            "April 18, 2024",
            "https://llama.meta.com/llama3/use-policy",
            meta="Meta ",
            built_with="Built with Meta Llama 3",
            begins_with="Llama 3",
            by_outputs=False,
            others_may_learn=False,
        ),
        _community("llama3.1", "3.1", "July 23, 2024", "https://llama.meta.com/llama3_1/use-policy"),
        _community(
            "llama3.2", "3.2", "September 25, 2024", "https://www.llama.com/llama3_2/use-policy", eu_multimodal=True
        ),
        # The policy of 3.3 has the clause too, but there is no multimodal 3.3.
        _community(
            "llama3.3", "3.3", "December 6, 2024", "https://www.llama.com/llama3_3/use-policy", eu_multimodal=True
        ),
        _community("llama4", "4", "April 5, 2025", "https://www.llama.com/llama4/use-policy", eu_multimodal=True),
    )
}
"""By id. Code Llama and the first Llama Guard are under llama2, Llama Guard 2 under llama3, and so on."""

_TITLE = re.compile(r"\bLLAMA (2|3|3\.1|3\.2|3\.3|4) COMMUNITY LICEN[SC]E AGREEMENT")
_OTHER_TITLES = {
    "apache-2.0": re.compile(r"APACHE LICENSE,? VERSION 2\.0"),
    "mit": re.compile(r"\bMIT LICENSE\b"),
    "cc-by-4.0": re.compile(r"ATTRIBUTION 4\.0 INTERNATIONAL"),
    "cc-by-sa-4.0": re.compile(r"ATTRIBUTION-SHAREALIKE 4\.0 INTERNATIONAL"),
    "cc-by-nc-4.0": re.compile(r"ATTRIBUTION-NONCOMMERCIAL 4\.0 INTERNATIONAL"),
    "cc0-1.0": re.compile(r"CC0 1\.0 UNIVERSAL"),
}
_TITLE_LENGTH = 400
"""A licence says what it is in its first lines; later it may name others."""

_HUB_IDS = """
apache-2.0 mit openrail bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m creativeml-openrail-m
openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
"""
HUB_IDS = frozenset(_HUB_IDS.split())
"""What the hub takes as `license:`; anything else goes under `other` with its name."""


def recognise(text: str) -> str | None:
    """The id of the licence that a text is, by its title; None where that is none of those known here."""
    title = _plain(text)[:_TITLE_LENGTH].upper()
    if found := _TITLE.search(title):
        return f"llama{found[1]}"
    for licence, pattern in _OTHER_TITLES.items():
        if pattern.search(title):
            return licence
    return None


def check_copy(licence: Licence, text: str, where: str) -> None:
    """The copy has to be that licence, whole: with the words that its duties come from. Raises InputError."""
    if licence.notice is None:
        return
    plain = _plain(text)
    wanted = [licence.notice, licence.built_with, licence.begins_with]
    if recognise(text) != licence.id or any(word not in plain for word in wanted if word is not None):
        raise InputError(
            f"{where} is not the whole text of the {licence.name}: put the file that Meta ships with the model there"
        )


def name_problem(licence: Licence, name: str) -> str | None:
    """What a published model has to be called instead of `name`; None where the name is right."""
    if licence.begins_with is None:
        return None
    prefix = licence.begins_with.replace(" ", "-")
    # "Llama-30b" begins with the letters and not with the name.
    if re.match(re.escape(prefix).replace(r"\-", "[-_]") + r"(?!\d)", name):
        return None
    rest = re.sub(r"(?i)^(meta[-_.]?)?llama[-_.]?(?=$|[^a-z])", "", name)
    if licence.begins_with == "Llama 3":
        rest = re.sub(r"^3(?=$|[-_.])", "", rest)
    return f"{prefix}-{rest.lstrip('-_.')}".rstrip("-")


def _plain(text: str) -> str:
    """One space between words and straight quotes, so that the line breaks of a copy do not matter."""
    for curly, straight in ((0x201C, '"'), (0x201D, '"'), (0x2019, "'")):
        text = text.replace(chr(curly), straight)
    return " ".join(text.split())

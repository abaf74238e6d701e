"""What a release owes: the licences of the bases it contains, and of the models whose output it learnt from.

A release of several bases owes all of it together. Llama 2 and 3 forbid that their output improves other families of
language models; from 3.1 on that is allowed, and the new model's name has to begin with "Llama". Which rows a model
wrote is known from the lineage (see lineage.py), and for other data from what the publisher says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune.errors import InputError
from finetune.release.licences import HUB_IDS, LICENCES, Licence, name_problem
from finetune.release.scan import Content
from finetune.release.terms import Terms

NOTICE = "Notice"


@dataclass(frozen=True)
class Writer:
    """Who wrote rows that the release was trained on. licence: id; label: the stage, or how it was told."""

    label: str
    base: str
    licence: str


@dataclass(frozen=True)
class Duties:
    """terms: of the bases whose weights are in the release, or that it is an adapter of."""

    terms: tuple[Terms, ...]
    writers: tuple[Writer, ...]

    @property
    def licences(self) -> list[Licence]:
        """Meta's licences that the release is under, each once."""
        return list(dict.fromkeys(terms.meta for terms in self.terms if terms.meta is not None))

    @property
    def built_with(self) -> list[str]:
        return list(dict.fromkeys(licence.built_with for licence in self.licences if licence.built_with))

    @property
    def metadata(self) -> dict[str, str]:
        """`license` of the card, with name and link where the hub has no id for it."""
        ids = list(dict.fromkeys(terms.id for terms in self.terms))
        if len(ids) == 1 and ids[0] in HUB_IDS:
            return {"license": ids[0]}
        copies = list(_copies(self.terms))
        return {
            "license": "other",
            "license_name": "-and-".join(ids),
            **({"license_link": copies[0]} if copies else {}),
        }

    def files(self) -> dict[str, Content]:
        """Licence copies, Notice and use policies, by the name they have in the release."""
        files: dict[str, Content] = dict(_copies(self.terms))
        if lines := [licence.notice for licence in self.licences if licence.notice]:
            files[NOTICE] = "".join(f"{line}\n" for line in lines).encode()
        # Apache's own, of bases that are not Meta's: there its name is in capitals.
        attributions = {t.id: t.attribution for t in self.terms if t.meta is None and t.attribution is not None}
        for id, path in attributions.items():
            files["NOTICE" if len(attributions) == 1 else f"NOTICE-{id}"] = path
        policies = {t.id: t.policy for t in self.terms if t.meta is not None and t.policy is not None}
        for id, path in policies.items():
            files["USE_POLICY.md" if len(policies) == 1 else f"USE_POLICY-{id}.md"] = path
        return files

    def check(self, *, holds_weights: bool) -> None:
        """What may not be published at all. holds_weights: of the base, not only what was added. Raises InputError."""
        for licence in self.licences:
            if licence.id == "llama1" and holds_weights:
                raise InputError(
                    "the weights of LLaMA (the first) may not be passed on, and a merged or exported model contains "
                    "them: publish the adapter instead"
                )
        for writer in self.writers:
            source = LICENCES.get(writer.licence)
            if source is None or source.others_may_learn:
                continue
            for terms in self.terms:
                if terms.id != source.id:
                    raise InputError(
                        f"{writer.label}: these rows were written by {writer.base}, and the {source.name} forbids to "
                        f"improve with its output any language model but {source.model} and what is made from it. "
                        f"This release is made from {terms.base} ({terms.id}): train it on other rows, or have them "
                        f"written by a model that allows it"
                    )

    def check_name(self, name: str) -> None:
        """The name of a published model, the part after `user/`. Raises InputError with one that is right."""
        owed = [(licence, "it is made with") for licence in self.licences]
        owed += [
            (licence, "it learnt from the output of")
            for writer in self.writers
            if (licence := LICENCES.get(writer.licence)) is not None and licence.by_outputs
        ]
        # The longest first: a name that begins with Llama-3 begins with Llama.
        for licence, why in sorted(owed, key=lambda pair: -len(pair[0].begins_with or "")):
            if better := name_problem(licence, name):
                raise InputError(
                    f'the name {name}: {why} {licence.model}, whose licence wants "{licence.begins_with}" at the '
                    f"beginning of the model's name. For example: {better}"
                )


def _copies(terms: Sequence[Terms]) -> Mapping[str, Content]:
    """The licence copies by their names in the release: LICENSE, or LICENSE-<id> where there are several."""

    def named() -> Iterator[tuple[str, Content]]:
        copies = {t.id: t.copy for t in terms if t.copy is not None}
        for id, path in copies.items():
            yield ("LICENSE" if len(copies) == 1 else f"LICENSE-{id}"), path

    return dict(named())

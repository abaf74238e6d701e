"""The card's last part: under which licences a release is, and what they ask of whoever takes it."""

from __future__ import annotations

from finetune.release.licences import LICENCES, Licence
from finetune.release.lineage import Manifest


def duty_lines(manifest: Manifest) -> list[str]:
    """Lines of Markdown, from the manifest's `published` section."""
    published = manifest["published"]
    lines = []
    for terms in published["terms"]:
        said = f"{terms['base']} is under **{terms['licence']}**, as {terms['witness']} says."
        copy = f" The text: [{terms['copy']}]({terms['copy']})." if terms["copy"] else ""
        lines.append(f"- {said}{copy}")
        if (licence := LICENCES.get(terms["licence"])) is not None:
            lines += [f"  - {duty}" for duty in _duties(licence, terms["is_multimodal"])]
    for writer in published["writers"]:
        lines.append(f"- Rows of {writer['label']} were written by {writer['base']} ({writer['licence']}).")
        if (licence := LICENCES.get(writer["licence"])) is not None and licence.by_outputs:
            lines.append(
                f'  - The {licence.name} wants "{licence.begins_with}" at the beginning of the name of a published '
                "model that its output was used to train."
            )
        if licence is not None and not licence.commercial:
            lines.append(f"  - {licence.model} is for non-commercial research; take its output so, too.")
    lines.append("- Data sets that were trained on have terms of their own, which the manifests do not record.")
    return lines


def _duties(licence: Licence, is_multimodal: bool) -> list[str]:
    if not licence.commercial:
        return ["For non-commercial research only."]
    duties = [
        f"Notice: {licence.notice}",
        "Pass on a copy of the licence and the Notice file with the model, and with whatever is made from it.",
    ]
    if licence.built_with:
        duties.append(
            f'Display "{licence.built_with}" prominently on the website, user interface, blog post, about page or '
            "documentation of what uses it."
        )
    if licence.begins_with:
        duties.append(f'The name of a published model that is made from it begins with "{licence.begins_with}".')
    if not licence.others_may_learn:
        duties.append(
            f"Its output may not be used to improve language models but {licence.model} and what is made from it."
        )
    duties += [
        f"Use only as the [acceptable use policy]({licence.policy}) allows.",
        "Whoever had, together with affiliates, more than 700 million monthly active users in the calendar month "
        f"before {licence.model} was released ({licence.released}) has to ask Meta for a licence.",
    ]
    if licence.eu_multimodal and is_multimodal:
        duties.append(
            "European Union: the use policy grants the rights to this multimodal model neither to individuals who live "
            "there nor to companies whose principal place of business is there; end users of a product that contains "
            "it are not concerned."
        )
    return duties

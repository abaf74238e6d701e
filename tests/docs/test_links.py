"""No link, and no path in words, leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from guides import ROOT, anchors, links, pages, read


@pytest.mark.parametrize("path", pages())
def test_links_lead_somewhere(path: str) -> None:
    wrong = []
    for line, target in links(path):
        place = urlsplit(target)
        if place.scheme:
            if place.scheme not in ("https", "mailto") or "." not in place.netloc:
                wrong.append(f"{path}:{line}: {target}: not the form of a link to elsewhere")
            continue
        file = (ROOT / path).parent / place.path if place.path else ROOT / path
        if not file.exists():
            wrong.append(f"{path}:{line}: {target}: no such file")
        elif place.fragment and place.fragment not in anchors(str(file.resolve().relative_to(ROOT))):
            wrong.append(f"{path}:{line}: {target}: no such heading")
    assert not wrong, "\n".join(wrong)


def test_links_were_found() -> None:
    found = [link for path in pages() for link in links(path)]
    assert len(found) > 100 and any("#" in target for _, target in found)


def test_guides_named_in_words_are_there() -> None:
    """docs/x.md in prose, in messages of the package, in recipes and in the scripts."""
    places = [ROOT / path for path in pages()]
    for folder, pattern in (("finetune", "*.py"), ("finetune", "*.yaml"), ("recipes", "*.yaml"), ("scripts", "*.py")):
        places += (ROOT / folder).rglob(pattern)
    wrong = set()
    for place in places:
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", place.read_text(encoding="utf-8")):
            if not (ROOT / name).is_file() and name != "docs/x.md":
                wrong.add(f"{place.relative_to(ROOT)} names {name}")
    assert not wrong, "\n".join(sorted(wrong))


def navigation() -> list[str]:
    """The pages that mkdocs.yml lists, in their order."""

    def below(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in below(value)]

    return below(yaml.safe_load(read("mkdocs.yml"))["nav"])


def test_every_page_is_in_the_navigation_once() -> None:
    listed = navigation()
    assert len(listed) == len(set(listed))
    docs = {str(Path(path).relative_to("docs")) for path in pages() if path.startswith("docs/")}
    assert docs <= set(listed), f"not in mkdocs.yml: {sorted(docs - set(listed))}"
    assert set(listed) - docs == {"changelog.md", "contributing.md", "recipes.md"}


def test_every_guide_can_be_reached_by_a_link() -> None:
    reached = {
        str(((ROOT / path).parent / urlsplit(target).path).resolve().relative_to(ROOT))
        for path in pages()
        for _, target in links(path)
        if not urlsplit(target).scheme and urlsplit(target).path
    }
    docs = {path for path in pages() if path.startswith("docs/")} - {"docs/index.md"}
    assert docs <= reached, f"no page links to {sorted(docs - reached)}"

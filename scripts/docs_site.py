"""A hook of mkdocs (mkdocs.yml names it): pages that lie outside docs/, and links to and from them.

On GitHub the files link to each other where they lie in the repository. On the site every page lies in docs/, so a link
is followed in the repository and written anew for the place that its target has on the site. A link that is called as a
file is called as its page there.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

OUTSIDE = {  # path in the repository → page of the site
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "recipes/README.md": "recipes.md",
}
ELSEWHERE = {"README.md": "index.md", "notebooks/README.md": "notebooks.md"}  # no pages; what to read instead
AS_THEY_ARE = "notebooks/*.ipynb"  # files that the site has to load down

LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
"""Target and anchor of a relative link in markdown."""

CALLED_AS_FILE = re.compile(r"\[[\w./-]+\.md\](?=\(([^)\s#:]+\.md)(?:#[^)\s]*)?\))")
"""The words of a link such as [docs/rounds.md](../docs/rounds.md), and its target."""


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls this when it has listed docs/: add the other pages."""
    root = Path(config.config_file_path).parent
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / path).read_text(encoding="utf-8")))
    for file in sorted(root.glob(AS_THEY_ARE)):
        files.append(File.generated(config, file.relative_to(root).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs calls this with the text of each page: write its links for the site."""
    here = page.file.src_uri
    source = next((path for path, uri in OUTSIDE.items() if uri == here), f"docs/{here}")
    root = Path(config.config_file_path).parent
    markdown = CALLED_AS_FILE.sub(lambda link: f"[{title(root / posixpath.dirname(source) / link[1])}]", markdown)
    return LINK.sub(lambda link: linked(link[1], source, here) + (link[2] or ""), markdown)


def title(page: Path) -> str:
    """The first heading of a page, as words in a sentence of links; its file's name where it has none."""
    if not page.is_file():
        return page.name  # mkdocs says that it is missing
    found = re.search(r"^# +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else page.name


def linked(target: str, source: str, here: str) -> str:
    """A link in the file `source` of the repository, as it has to read on the page `here` of the site."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    page = OUTSIDE.get(path) or ELSEWHERE.get(path) or path.removeprefix("docs/")
    return os.path.relpath(page, posixpath.dirname(here) or ".").replace(os.sep, "/")

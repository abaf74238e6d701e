"""Where their paths lead, and how the recipe writes them. Theirs begin where they run; ours at the recipe."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe.base_checks import looks_like_path
from finetune.recipe.checks import DATA_EXTENSIONS

_LOADERS = ("json", "csv", "parquet", "text", "jsonl")
"""What `datasets.load_dataset` takes in place of a name where the files are given apart."""
_OTHERS = re.compile(
    r"qwen|qwq|zephyr|mi[sx]tral|ministral|gemma|(^|[-_/])phi[-_\d]|falcon|pythia|gpt|(^|[-_/])opt-|bloom|(^|[-_/])mpt-|stablelm|"
    r"olmo|deepseek|internlm|glm|baichuan|command-|cohere|granite|starcoder|jamba|mamba|llama-?4|vision|llava|t5|-vl\b",
    re.I,
)
"""Names of models of other designs. A guess, and told as one: `finetune check` reads a folder's config."""


@dataclass(frozen=True)
class Places:
    """theirs: their file. out: the folder of the recipe. here: where we run, which is where they run most likely."""

    theirs: Path
    out: Path
    here: Path

    def find(self, given: str) -> Path | None:
        """The file or folder that they mean: from where we are, or else from their file's folder and those above."""
        path = Path(os.path.expanduser(given))
        folder = self.theirs.resolve().parent
        above = folder.parents[:4] if "/" in given else ()  # a mere word may be there by chance
        places = (path,) if path.is_absolute() else (self.here, folder, *above)
        try:
            return next((place / path for place in places if (place / path).exists()), None)
        except OSError:  # a name that is too long for the disk, a folder that may not be read
            return None

    def written(self, found: Path, given: str) -> str:
        """As the recipe writes it: absolute where it was given so, else relative to the recipe's folder."""
        if Path(os.path.expanduser(given)).is_absolute():
            return given
        relative = Path(os.path.relpath(found.absolute(), self.out.absolute())).as_posix()
        return relative if relative.startswith("..") else f"./{relative}"

    def folder(self, given: str) -> tuple[str, str]:
        """(how the recipe writes a folder or hub id, what is to be decided about it)."""
        if found := self.find(given):
            return self.written(found, given), ""
        if looks_like_path(given):
            return given, f"no folder {given} from here: write where it is, relative to the recipe"
        return given, ""

    def rows(self, given: str, files: list[str]) -> list[tuple[dict[str, Any], str]]:
        """Data sources as recipes have them, each with what is to be decided about it.

        given: a file, a folder, a hub name, or json, csv … with `files`.
        """
        if files and given.lower() in _LOADERS:
            return [self._file(file) for file in files]
        if files:
            found = [self.find(f"{given}/{file}") for file in files]
            if all(found):
                return [({"path": self.written(path, given)}, "") for path in found if path is not None]
            note = f"data_files of a hub data set cannot be chosen here: download {', '.join(files)} and give its path"
            return [({"hub": given}, note)]
        return [self._file(given)] if self._is_file(given) else [({"hub": given}, "")]

    def _is_file(self, given: str) -> bool:
        return "://" in given or given.endswith(DATA_EXTENSIONS) or looks_like_path(given) or bool(self.find(given))

    def _file(self, given: str) -> tuple[dict[str, Any], str]:
        if "://" in given:
            return {"path": given}, f"{given} is an address: download it and give the file's path"
        if found := self.find(given):
            return {"path": self.written(found, given)}, ""
        return {"path": given}, f"no file {given} from here: write where it is, relative to the recipe"


def looks_quantised(name: str) -> bool:
    """Whether a hub id names weights that are packed already, of which no adapter here is trained."""
    return bool(re.search(r"bnb-?4bit|-4bit|gptq|awq|gguf|-fp8|-int[48]\b", name, re.I))


def looks_unlike_llama(name: str) -> bool:
    """Whether a hub id names a model of another design."""
    last = name.rpartition("/")[2]
    if re.search(r"llama|vicuna|alpaca", last, re.I) and not re.search(r"llama-?4|vision|llava", last, re.I):
        return False
    return bool(_OTHERS.search(name))

"""Check a finished folder as anyone who downloads it can: `finetune verify`.

Three things: every file is the one that was written (sha256 in the manifest); tokenizer and chat template give the ids
that were trained; the model, loaded again, gives the logits (or scores) that the manifest recorded when it was proven.
The first says that nothing changed, the other two that it works here, whatever the manifest says about its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from finetune.data.encode import encode_prompt
from finetune.data.tokenizer import Tokenizer
from finetune.durable import damaged_file, describe_files
from finetune.errors import BaseModelError, FinetuneError, InputError, ProofError
from finetune.families.detect import resolve
from finetune.model.adapter import open_adapter
from finetune.model.base import Precision, choose_device, choose_precision, load_base
from finetune.model.ragged import Layout, ragged_hidden
from finetune.model.reward import open_reward
from finetune.plan.base_files import BaseFiles, read_json
from finetune.plan.evaluations import FOLDER as EVALUATIONS
from finetune.plan.manifest import FILE, read_manifest
from finetune.plan.run_base import find_base
from finetune.release.lora import CONFIG
from finetune.release.merge_proof import class_scores, load_merged, log_probs
from finetune.release.proof_rows import FIXED
from finetune.shapes import Dialog, Message

Say = Callable[[str], None]

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""How far, relative to the largest recorded value (at least 1), another machine's arithmetic may lead."""


def verify(folder: Path, *, base: str | None = None, load: bool = True, say: Say) -> None:
    """Check the run, merged or exported folder. load: also load the model. base: of an adapter, if it is elsewhere.

    Raises InputError where the folder is no finished one or the base is not found, ProofError where something differs.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {FILE}: not a finished run, nor one that was merged, exported or published")
    _check_files(folder, manifest, say)
    kind = manifest["kind"]
    if (folder / CONFIG).is_file():
        _check_adapter(folder, manifest, base, load, say)
    elif kind == "merged" or (folder / "model.safetensors.index.json").is_file() or any(folder.glob("*.safetensors")):
        _check_model(folder, manifest, load, say)
    elif any(folder.glob("*.gguf")):
        _check_gguf(folder, say)
    else:
        say(f"a {kind} folder has no weights: its files are all there is to check")
    say(f"{manifest.get('name', folder)}: verified")


def _check_files(folder: Path, manifest: Mapping[str, Any], say: Say) -> None:
    files = manifest["files"]
    if problem := damaged_file(folder, files):
        raise ProofError(f"{folder}: {problem}")
    size = sum(entry["size"] for entry in files.values())
    say(f"files: all {len(files)} ({size / 2**20:,.1f} MiB) have the sha256 that the manifest records")
    found = describe_files(folder, leave_out=[*files, FILE])
    if extra := [name for name in found if not name.startswith(f"{EVALUATIONS}/")]:  # added to a run as it is measured
        say(f"files: {len(extra)} more that the manifest does not know, not checked: {', '.join(extra[:5])}")


def _check_adapter(folder: Path, manifest: Mapping[str, Any], base: str | None, load: bool, say: Say) -> None:
    proof = manifest.get("proof") or {}
    if not load:
        return
    model, files = find_base(folder, manifest, base, say)
    _check_words(folder, manifest, files.config, say, base=files)
    device = choose_device(model.device)
    precision = choose_precision(model.load_in, model.compute, device)
    if "last_row_ids" not in proof:
        say("logits: the manifest records none: adapter and base were not compared")
        return
    ids = proof["last_row_ids"]
    loaded = load_base(files.folder, precision, device)
    with torch.no_grad(), torch.autocast(device.type, precision.compute, enabled=precision.compute != torch.float32):
        ids_T = torch.tensor(ids, device=device)
        layout = Layout.of_rows([len(ids)])
        last = torch.tensor([len(ids) - 1], device=device)
        if "scores" in proof:
            reward = _opened(lambda: open_reward(loaded, folder))
            hidden_TD = ragged_hidden(reward.adapted.get_base_model().model, ids_T, layout)
            found = reward.scores(hidden_TD, last).cpu()
            _compare("score", [proof["scores"][-1]], found.tolist(), precision, say)
            return
        inner = _opened(lambda: open_adapter(loaded, folder)).eval().get_base_model()
        logits_V = inner.lm_head(ragged_hidden(inner.model, ids_T, layout)[last])[0].float().cpu()
    _compare_top(proof["last_row_top_ids"], proof["last_row_top_logits"], logits_V, "logits", precision, say)


def _check_model(folder: Path, manifest: Mapping[str, Any], load: bool, say: Say) -> None:
    proof = manifest.get("proof") or {}
    if not load:
        return
    config = read_json(folder / "config.json")
    if config is None:
        raise ProofError(f"{folder} has no config.json")
    _check_words(folder, manifest, config, say, base=None)
    if "last_row_ids" not in proof:
        say("logits: the manifest records none (the model was proven by its tensors): not compared")
        return
    compute: torch.dtype = getattr(torch, proof["compute"])
    device = choose_device("auto")
    reward = "scores" in proof
    model = _opened(lambda: load_merged(folder, reward, compute, device))
    rows, precision = [proof["last_row_ids"]], Precision("bf16", compute)
    if reward:
        _compare("score", [proof["scores"][-1]], class_scores(model, rows)[0].tolist(), precision, say)
        return
    logps_V = log_probs(model, rows)[0][-1]
    _compare_top(proof["last_row_top_ids"], proof["last_row_top_logprobs"], logps_V, "log-probs", precision, say)


def _check_words(
    folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], say: Say, *, base: BaseFiles | None
) -> None:
    """Tokenizer, chat template and stop tokens are those of the training. Raises ProofError."""
    recorded = manifest["family"]
    try:
        ours = Tokenizer.load(folder)
        family = resolve(config, ours.special_tokens, recorded["template"]).family
    except BaseModelError as error:
        raise ProofError(f"{folder}: the tokenizer is damaged: {error}") from error
    if base is not None:
        theirs = Tokenizer.load(base.folder)
        for text in (*FIXED, *family.needs):
            if ours.encode_text(text) != theirs.encode_text(text) or ours.id_of(text) != theirs.id_of(text):
                raise ProofError(f"{folder}: its tokenizer splits {text!r} otherwise than the base's: it is damaged")
    stops = (read_json(folder / "generation_config.json") or {}).get("eos_token_id") or []
    wanted = [ours.id_of(token) for token in family.stop_tokens]
    # A classifier writes no text, so it has no such file.
    is_reward = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or [])
    if not is_reward and not set(wanted) <= set(stops if isinstance(stops, list) else [stops]):
        raise ProofError(
            f"{folder}: generation_config.json stops at {stops}, but an answer was trained to end with "
            f"{', '.join(family.stop_tokens)} ({wanted}): the model would go on talking"
        )
    if not family.is_chat:
        say(f"tokenizer: {recorded['name']} has no turns, and stops at {', '.join(family.stop_tokens)}")
        return
    try:
        plain = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        written = [_ids(plain, text) for text in FIXED]
    except Exception as error:  # jinja2, tokenizers and transformers raise what they like about a damaged file
        raise ProofError(f"{folder}: transformers cannot use its tokenizer or chat template: {error}") from error
    for text, found in zip(FIXED, written, strict=True):
        if found != encode_prompt(Dialog((Message("user", text),)), family, ours):
            raise ProofError(
                f"{folder}: tokenizer and chat_template.jinja write {text!r} as other ids than the model was trained "
                f"with (template {recorded['template']}): one of them is damaged"
            )
    say(f"tokenizer and template: transformers writes the ids that were trained ({recorded['name']})")


def _ids(tokenizer: Any, text: str) -> list[int]:
    turns = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"] if isinstance(found, Mapping) or hasattr(found, "input_ids") else found)


def _check_gguf(folder: Path, say: Say) -> None:
    from finetune.release.gguf_check import check_gguf_file

    for path in sorted(folder.glob("*.gguf")):
        say(check_gguf_file(path))


def _compare_top(
    ids: list[int], recorded: list[float], found_V: torch.Tensor, what: str, precision: Precision, say: Say
) -> None:
    if max(ids) >= len(found_V):
        raise ProofError(f"the model has {len(found_V)} words, the manifest speaks of word {max(ids)}")
    _compare(what, recorded, found_V[ids].tolist(), precision, say)


def _compare(what: str, recorded: list[float], found: list[float], precision: Precision, say: Say) -> None:
    scale = max(1.0, *(abs(value) for value in recorded))
    off = max(_distance(a, b) for a, b in zip(recorded, found, strict=True)) / scale
    allowed = ROUNDING[precision.compute]
    if not off <= allowed:
        raise ProofError(
            f"the recorded {what} is not what the model gives here: off by {off:.3g} of the largest ({allowed:g} is "
            "allowed for another machine's rounding): the weights, their base or their configuration are not those "
            "that were proven"
        )
    say(f"{what}: loaded again, the recorded ones are found (off by {off:.2g} of the largest, {allowed:g} allowed)")


def _distance(a: float, b: float) -> float:
    """|a - b|; infinite where one is not a number."""
    return abs(a - b) if abs(a - b) == abs(a - b) else float("inf")


def _opened(load: Callable[[], Any]) -> Any:
    """What cannot be loaded is not what was proven."""
    try:
        return load()
    except ProofError:
        raise
    except (FinetuneError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ProofError(f"it cannot be loaded: {error}") from error

"""What is proven of a GGUF file: it is read back, and holds the model, the words and the template it was made of.

Without llama.cpp: every tensor is dequantised and compared with the checkpoint, and texts are tokenised from the file's
own vocabulary by llama.cpp's rules and compared with Hugging Face's ids. Where llama-cpp-python is installed, llama.cpp
itself is asked: its ids, and its next-token distribution at every position, against transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from finetune.data.encode import encode_prompt
from finetune.data.tokenizer import Tokenizer
from finetune.errors import ProofError
from finetune.families.base import Family, Span
from finetune.plan.base_files import read_json
from finetune.release.gguf_words import Words, encode_like_llama_cpp
from finetune.release.merge_proof import Difference, differ, load_merged, log_probs
from finetune.release.proof_rows import FIXED, FIXED_TEXT
from finetune.release.to_gguf import plan_tensors, rope_factors
from finetune.shapes import Dialog, Message

_BITS_ALLOWED = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 4e-3,
    "Q8": 0.01,
    "Q6": 0.04,
    "Q5": 0.08,
    "Q4": 0.15,
    "Q3": 0.3,
    "Q2": 0.6,
}
"""Largest relative error (Frobenius norm) of a tensor by the bits of its type: about twice what was measured on
normally distributed weights (Q8_0 0.0054, Q6_K 0.018, Q5_K 0.036, Q4_K 0.072, Q4_0 0.087, Q3_K 0.15, Q2_K 0.30), so
that a wrong order of rows or a wrong tensor (1.4) is found in all of them."""
_KL_ALLOWED = {"f32": 1e-4, "f16": 0.01, "bf16": 0.02, "q8_0": 0.05}
"""Mean KL of llama.cpp from transformers, nats a token. Coarser types change the model, and are told, not refused."""
PROBES = (*FIXED, FIXED_TEXT, "  two  spaces\n\n\tand tabs ", "naïve café 日本語 🦙", "x = 12345;  # 1,000.5", "")


def check_gguf_file(path: Path) -> str:
    """Read a file whole: its structure, and that every tensor is finite. Returns a line to show. Raises ProofError."""
    reader = _open(path)
    for tensor in reader.tensors:
        if not np.isfinite(_dequantised(tensor)).all():
            raise ProofError(f"{path.name}: {tensor.name} has values that are not finite")
    words = len(_field(reader, "tokenizer.ggml.tokens"))
    return f"{path.name}: {len(reader.tensors)} tensors, all finite, and {words:,} words"


def prove_gguf(folder: Path, path: Path, kind: str, family: Family | None = None) -> dict[str, Any]:
    """Compare a written file with the merged folder it was made of. Raises ProofError naming what differs.

    family: the template of the training, whose prompts have to become the ids of the training.
    """
    config = read_json(folder / "config.json") or {}
    reader = _open(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    worst = 0.0
    planned = plan_tensors(folder, config, "f32")
    factors = rope_factors(config)
    expected = {tensor.name for tensor in planned} | ({"rope_freqs.weight"} if factors is not None else set())
    if expected != found.keys():
        odd = sorted(expected ^ found.keys())[0]
        raise ProofError(f"{path.name}: {odd} is in the file or in {folder}, not in both")
    for tensor in planned:
        off = _relative(tensor.values(), _dequantised(found[tensor.name]))
        name = found[tensor.name].tensor_type.name
        allowed = _BITS_ALLOWED[name.partition("_")[0]]
        if not off <= allowed:
            raise ProofError(f"{path.name}: {tensor.name} ({name}) is off by {off:.3g}, {allowed:g} is allowed")
        worst = max(worst, off)
    if factors is not None and not np.array_equal(_dequantised(found["rope_freqs.weight"]), factors):
        raise ProofError(f"{path.name}: rope_freqs is not what the config's positions need")
    template = folder / "chat_template.jinja"
    if template.is_file() and _field(reader, "tokenizer.chat_template") != template.read_text(encoding="utf-8"):
        raise ProofError(f"{path.name}: its chat template is not the folder's")
    _prove_words(folder, path, reader, family)
    return {
        "tensors": len(found),
        "largest_relative": worst,
        "texts": len(PROBES),
        **_with_llama_cpp(folder, path, kind, family),
    }


def _prove_words(folder: Path, path: Path, reader: Any, family: Family | None) -> None:
    kind = _field(reader, "tokenizer.ggml.model")
    words = Words(
        kind=kind,
        pieces=_field(reader, "tokenizer.ggml.tokens"),
        types=_field(reader, "tokenizer.ggml.token_type"),
        scores=_field(reader, "tokenizer.ggml.scores") if kind == "llama" else (),
        merges=_field(reader, "tokenizer.ggml.merges") if kind == "gpt2" else (),
        special={},
        adds_bos=bool(_field(reader, "tokenizer.ggml.add_bos_token")),
    )
    tokenizer = Tokenizer.load(folder)
    for text in PROBES:
        theirs, ours = tokenizer.encode_text(text), encode_like_llama_cpp(words, text)
        if theirs != ours:
            raise ProofError(f"{path.name}: llama.cpp would split {text!r} into {ours}, the tokenizer gives {theirs}")
    for text, spans, theirs in _prompts(family, tokenizer):
        ours = []
        for is_special, group in groupby(spans, key=lambda span: span.special):
            names = [span.text for span in group]
            ours += [words.ids[name] for name in names] if is_special else encode_like_llama_cpp(words, "".join(names))
        if theirs != ours:
            raise ProofError(f"{path.name}: llama.cpp would read the prompt {text!r} as {ours}; trained were {theirs}")
    settings = read_json(folder / "tokenizer_config.json") or {}
    for key in ("bos", "eos"):
        name = settings.get(f"{key}_token")
        if name is not None and _field(reader, f"tokenizer.ggml.{key}_token_id") != tokenizer.id_of(name):
            raise ProofError(f"{path.name}: its {key} token is not {name}")


def _prompts(family: Family | None, tokenizer: Tokenizer) -> list[tuple[str, list[Span], list[int]]]:
    """(question, its prompt as the family renders it, the ids that were trained) for fixed questions."""
    if family is None or not family.is_chat:
        return []
    chats = [(text, Dialog((Message("user", text),))) for text in FIXED]
    return [
        (text, family.render(chat, add_generation_prompt=True), encode_prompt(chat, family, tokenizer))
        for text, chat in chats
    ]


def _with_llama_cpp(folder: Path, path: Path, kind: str, family: Family | None) -> dict[str, Any]:
    """ids and distributions of llama.cpp itself; only a note where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return {"llama_cpp": None}
    theirs = llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, n_gpu_layers=0, type_k=0, type_v=0, n_threads=1
    )
    tokenizer = Tokenizer.load(folder)
    for text in PROBES[:-1]:  # the empty text has no ids, and llama-cpp-python refuses it
        ids = theirs.tokenize(text.encode(), add_bos=False, special=False)
        if ids != tokenizer.encode_text(text):
            raise ProofError(f"{path.name}: llama.cpp splits {text!r} into {ids}, not {tokenizer.encode_text(text)}")
    for text, spans, trained in _prompts(family, tokenizer):
        ids = theirs.tokenize("".join(span.text for span in spans).encode(), add_bos=False, special=True)
        if ids != trained:
            raise ProofError(f"{path.name}: llama.cpp reads the prompt {text!r} as {ids}; trained were {trained}")
    bos = theirs.token_bos()
    rows = [[bos, *tokenizer.encode_text(text)] for text in (*FIXED, FIXED_TEXT)]
    model = load_merged(folder, False, torch.float32, torch.device("cpu"))
    found = [_llama_log_probs(theirs, row) for row in rows]
    difference = differ(log_probs(model, rows), found)
    assert isinstance(difference, Difference)
    if not difference.mean_kl <= _KL_ALLOWED.get(kind, float("inf")):
        raise ProofError(f"{path.name}: llama.cpp answers otherwise than transformers: {difference}")
    return {
        "llama_cpp": {
            "version": llama_cpp.__version__,
            "mean_kl": difference.mean_kl,
            "max_kl": difference.max_kl,
            "top1": difference.top1,
        }
    }


def _llama_log_probs(model: Any, row: Sequence[int]) -> torch.Tensor:
    """[T, V] of llama.cpp for one row."""
    model.reset()
    model.eval(list(row))
    return torch.from_numpy(np.array(model.scores[: len(row)], dtype=np.float32)).log_softmax(-1)


def _open(path: Path) -> Any:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ProofError(f"{path.name} is no GGUF file that can be read: {error}") from error


def _field(reader: Any, name: str) -> Any:
    if name not in reader.fields:
        raise ProofError(f"the GGUF file has no {name}")
    return reader.fields[name].contents()


def _dequantised(tensor: Any) -> Any:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _relative(expected: Any, found: Any) -> float:
    if expected.shape != found.shape:
        return float("inf")
    size = float(np.linalg.norm(expected))
    off = float(np.linalg.norm(expected - found))
    return off / size if size > 0 else off


def told(proof: Mapping[str, Any]) -> str:
    """One line for the user."""
    line = (
        f"{proof['tensors']} tensors read back (off by at most {proof['largest_relative']:.2g}), {proof['texts']} texts"
    )
    if (llama := proof["llama_cpp"]) is None:
        return f"{line}; llama-cpp-python is not installed, so llama.cpp itself was not asked"
    return (
        f"{line} split alike by llama.cpp {llama['version']}: mean KL {llama['mean_kl']:.2g}, top-1 {llama['top1']:.2%}"
    )

"""The reference of preference learning: the adapter a stage started from, frozen on the same base, or the bare base.

Nothing is copied but the adapter. Log-probabilities of the reference are computed with every batch, on the same layout
and so to the same bits, or once ahead and cached by content, which is cheaper when rows are seen more than once.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from finetune.durable import rename_file
from finetune.engine import loop
from finetune.engine.batches import Rows, TokenBatch, collate
from finetune.engine.token_logprobs import Hidden, token_logprobs
from finetune.model.adapter import ADAPTER

REFERENCE = "reference"

Logprobs = Callable[[TokenBatch], Tensor]
"""batch -> [N] reference log-probabilities of its labels, without gradient."""


def add_reference(model: PeftModel, start: Path | None) -> None:
    """Put what the policy starts from on the base once more, frozen: the adapter in `start`, or nothing where a fresh
    adapter leaves the base as it is."""
    if start is not None:
        model.load_adapter(str(start), adapter_name=REFERENCE, is_trainable=False)
    elif not starts_as_base(model):
        # The base itself in theory, but not bit for bit (dora, orthogonal), or moved into the adapter (pissa, olora).
        config = copy.deepcopy(model.peft_config[ADAPTER])
        config.inference_mode, config.init_lora_weights = True, True
        weights = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
        model.add_adapter(REFERENCE, config)
        set_peft_model_state_dict(model, weights, adapter_name=REFERENCE)
    model.set_adapter(ADAPTER)


def starts_as_base(model: PeftModel) -> bool:
    """Whether a fresh adapter changes no bit of what the base computes: B is 0, and nothing is rescaled."""
    config = model.peft_config[ADAPTER]
    return config.init_lora_weights in (True, "gaussian") and not config.use_dora


@contextmanager
def reference_active(model: PeftModel) -> Iterator[None]:
    """Within: the reference answers, without dropout. After: the policy, trainable, in the mode it was in."""
    was_training = model.training
    model.eval()
    has_adapter = REFERENCE in model.peft_config
    switch: AbstractContextManager[object] = _switched(model) if has_adapter else model.disable_adapter()
    try:
        with switch, torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _switched(model: PeftModel) -> Iterator[None]:
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter(ADAPTER)  # which also makes the policy's weights the trainable ones again


def with_every_batch(model: PeftModel, decoder: nn.Module, head: nn.Module, hidden: Hidden) -> Logprobs:
    """Reference log-probabilities by one more forward on the batch in hand."""

    def compute(batch: TokenBatch) -> Tensor:
        with reference_active(model):
            return token_logprobs(batch, decoder, head, hidden)

    return compute


def once_ahead(
    compute: Logprobs,
    data: Rows,
    *,
    micro_batch_size: int,
    device: torch.device,
    compute_dtype: torch.dtype,
    cache: Path,
    key: Sequence[str],
    say: Callable[[str], None],
) -> Logprobs:
    """Compute the reference's log-probabilities of all rows now, or find them in the cache.

    key: what they depend on besides the rows: base, adapter, precision. The cache holds float32 in the rows' order, one
    number for every trained token.
    """
    counts = np.array(
        [int(np.asarray(data.row(i)[1])[1:].astype(bool).sum()) for i in range(len(data))], dtype=np.int64
    )
    ends = np.cumsum(counts)
    path = cache / f"reference-{_digest(data, key)}.npy"
    if (values := _load(path, int(counts.sum()))) is not None:
        say(f"reference: log-probabilities of {len(data):,} answers found in the cache")
    else:
        say(f"reference: log-probabilities of {len(data):,} answers, once ahead")
        values = np.zeros(int(counts.sum()), dtype=np.float32)
        order = np.argsort(-data.lengths, kind="stable")
        for start in range(0, len(order), micro_batch_size):
            rows = order[start : start + micro_batch_size].tolist()
            with loop.autocast(device, compute_dtype):
                found = compute(collate(data, rows).to(device)).cpu().numpy()
            at = 0
            for row in rows:
                values[ends[row] - counts[row] : ends[row]] = found[at : at + counts[row]]
                at += counts[row]
        _store(path, values)

    def look_up(batch: TokenBatch) -> Tensor:
        parts = [values[ends[row] - counts[row] : ends[row]] for row in batch.rows]
        return torch.from_numpy(np.concatenate(parts)).to(batch.labels_N.device)

    return look_up


def _digest(data: Rows, key: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(key).encode())
    for index in range(len(data)):
        ids, trained = data.row(index)
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids, dtype=np.int32).tobytes())
        digest.update(np.ascontiguousarray(trained, dtype=np.uint8).tobytes())
    return digest.hexdigest()[:32]


def _load(path: Path, count: int) -> NDArray[np.float32] | None:
    """What `_store` wrote, None where there is nothing or it is broken: then it is computed again."""
    try:
        values = np.load(path)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return values if values.shape == (count,) and values.dtype == np.float32 and np.isfinite(values).all() else None


def _store(path: Path, values: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")  # two runs may need the same reference at the same time
    try:
        with part.open("wb") as file:
            np.save(file, values)
        rename_file(part, path)
    finally:
        part.unlink(missing_ok=True)

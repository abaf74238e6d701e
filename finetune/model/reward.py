"""A reward model: a LoRA adapter and a scalar head on the frozen base, saved as one ordinary PEFT adapter.

The score of a row is the head's output at the row's last token. On disk it is what peft writes for a sequence
classifier with one label: LoRA weights and `score.weight` in adapter_model.safetensors, so
`AutoModelForSequenceClassification(num_labels=1)` + `PeftModel.from_pretrained` gives the same scores; the head is in
the same file, with its hash in the manifest, and cannot be left behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from finetune.durable import write_bytes
from finetune.errors import InputError, ProofError
from finetune.model.adapter import ADAPTER, read_adapter, reload_rounding
from finetune.model.ragged import Layout, ragged_hidden

HEAD_KEY = "base_model.model.score.weight"
"""Where peft keeps the head of a LlamaForSequenceClassification that is listed in modules_to_save."""


class RewardModel(nn.Module):
    """adapted: base with the active adapter. score: the head, [1, D] float32, no bias (as transformers has it)."""

    def __init__(self, adapted: PeftModel, head: nn.Linear) -> None:
        super().__init__()
        self.adapted = adapted
        self.score = head

    def scores(self, hidden_TD: Tensor, last_B: Tensor) -> Tensor:
        """[B] float32 scores of rows whose last tokens stand at last_B of the T hidden states."""
        with torch.autocast(hidden_TD.device.type, enabled=False):
            return self.score(hidden_TD.index_select(0, last_B).float()).squeeze(1)


def new_head(hidden_size: int, seed: int, device: torch.device) -> nn.Linear:
    """A fresh head: normal with deviation 1 / sqrt(D + 1), so that first scores are about 1 in size (Stiennon 2020)."""
    head = nn.Linear(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(std=(hidden_size + 1) ** -0.5, generator=generator)
    return head.to(device)


def add_head(folder: Path, head: nn.Linear) -> None:
    """Turn the adapter in `folder` into a reward adapter: the head into its weights, SEQ_CLS into its config."""
    path = folder / "adapter_model.safetensors"
    tensors, _ = read_adapter(folder)
    tensors[HEAD_KEY] = head.weight.detach().float().cpu().contiguous()
    write_bytes(path, pack_tensors(tensors, metadata={"format": "pt"}))
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    saved = [*(config.get("modules_to_save") or []), "score"]
    config |= {"task_type": "SEQ_CLS", "modules_to_save": saved}
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def attach(adapted: PeftModel, folder: Path, name: str) -> nn.Linear:
    """Load a reward adapter beside others on the base, frozen, under `name`; returns its head.

    Raises InputError where the folder is no reward adapter of ours or of peft's.
    """
    tensors, config = read_reward(folder)
    adapted.add_adapter(name, config)
    adapted.train(adapted.training)  # or its dropout would be in training, whatever the model is in
    return _fill(adapted, tensors, name, folder)


def open_reward(base: LlamaForCausalLM, folder: Path) -> RewardModel:
    """A saved reward model on a base that has no adapter yet, frozen and in eval mode. Raises InputError."""
    tensors, config = read_reward(folder)
    try:
        adapted = PeftModel(base, config, ADAPTER)
    except ValueError as error:  # target modules that this base has not
        raise InputError(f"{folder}: the adapter does not fit this base: {error}") from error
    head = _fill(adapted, tensors, ADAPTER, folder)
    return RewardModel(adapted.requires_grad_(False), head).eval()


def _fill(adapted: PeftModel, tensors: dict[str, Tensor], name: str, folder: Path) -> nn.Linear:
    """Put a reward adapter's weights in their place; returns its head."""
    head_weight = tensors.pop(HEAD_KEY)
    try:
        loaded = set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    except RuntimeError as error:  # other shapes
        raise InputError(f"{folder}: the adapter does not fit this base: {error}") from error
    own = [key for key in loaded.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
    if astray := [*loaded.unexpected_keys, *own]:
        why = "has no place in it" if loaded.unexpected_keys else "is not in the file"
        raise InputError(f"{folder}: the adapter does not fit this base, or is damaged: {astray[0]} {why}")
    if head_weight.shape != (1, adapted.config.hidden_size):
        raise InputError(
            f"{folder}: its head has the shape {list(head_weight.shape)}, this base has {adapted.config.hidden_size} "
            "dimensions: it was trained on another base"
        )
    head = nn.Linear(head_weight.shape[1], 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(head_weight)
    return head.requires_grad_(False).to(adapted.device)


def read_reward(folder: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Weights and configuration of a reward adapter; the head is listed no more. Raises InputError."""
    tensors, config = read_adapter(folder)
    if HEAD_KEY not in tensors:
        raise InputError(f"{folder} is an adapter without a reward head: only the result of a reward stage can score")
    config.task_type = "CAUSAL_LM"
    config.inference_mode = True
    config.modules_to_save = [name for name in config.modules_to_save or [] if name != "score"] or None
    return tensors, config


@torch.no_grad()
def prove_head(
    model: RewardModel,
    folder: Path,
    ids_T: Tensor,
    lengths: list[int],
    *,
    fresh: LlamaForCausalLM | None = None,
) -> dict[str, Any]:
    """Load the saved reward adapter and compare its scores with the trained one's. Raises ProofError.

    It is loaded beside the trained one, on the same base, and has to be bit-equal. A pissa or olora run has changed its
    base, so it is loaded on a `fresh` one, where rounding is allowed for, as in `adapter.prove_reload`.
    """
    model.eval()
    trained = _scores(model, ids_T, lengths)
    if not torch.isfinite(trained).all():
        raise ProofError(f"the trained reward model gives scores that are not finite; nothing was released ({folder})")
    if fresh is None:
        allowed = 0.0
        active = model.adapted.active_adapter
        head = attach(model.adapted, folder, "reloaded")
        model.adapted.set_adapter("reloaded")
        reloaded = _scores(RewardModel(model.adapted, head), ids_T, lengths)
        model.adapted.set_adapter(active)
        model.adapted.delete_adapter("reloaded")
    else:
        allowed = reload_rounding(fresh) * trained.abs().max().item()
        reloaded = _scores(open_reward(fresh, folder), ids_T, lengths)
    difference = (trained - reloaded).abs().max().item()
    if not difference <= allowed:
        raise ProofError(
            f"the reward model in {folder}, loaded again, differs from the trained one by {difference:.3g} in its "
            f"scores ({allowed:.3g} allowed); nothing was released"
        )
    return {
        "rows": len(lengths),
        "max_abs_difference": difference,
        "last_row_ids": ids_T[-lengths[-1] :].tolist(),
        "scores": trained.tolist(),
    }


def _scores(model: RewardModel, ids_T: Tensor, lengths: list[int]) -> Tensor:
    """[B] scores of rows that stand end to end."""
    hidden_TD = ragged_hidden(model.adapted.get_base_model().model, ids_T, Layout.of_rows(lengths))
    return model.scores(hidden_TD, torch.tensor(lengths, device=ids_T.device).cumsum(0) - 1)

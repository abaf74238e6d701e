"""Selected, chunked log-probabilities: the LM head without its logits.

Only hidden states that carry a label meet the head, a chunk of rows at a time, and the gradient of each row is made in
the forward pass while its logits are at hand. So [tokens, vocabulary] never exists: memory is chunk x V, and at 128K
words, where the head is most of a small step, masked positions cost nothing.

Letters: N labelled positions, D hidden size, V vocabulary size, C rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 32 * 2**20
"""Float32 logits of one chunk: 262 rows at 32K words, 65 at 128K. Measured on one CPU core (1024 rows, D 384): at 32K
words 128 to 1024 rows are equal within 8 % in float32 and 128 to 256 are best in bfloat16; at 128K 64 rows are best."""


_LEAST = -1e4
"""Nats below the top that count as that many: 0 times minus infinity would be no number."""


def chunk_rows(vocabulary: int) -> int:
    """Rows of one chunk for a vocabulary of that many words: at least 16, CHUNK_BYTES of float32 logits at most."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


class _ChunkedLogprobs(Function):
    """log p(label) of every row, for a head whose weight takes no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, labels_N: Tensor, weight_VD: Tensor, chunk: int) -> Tensor:
        logps_N = hidden_ND.new_empty(labels_N.shape, dtype=torch.float32)
        # d logp_i / d hidden_i = weight[label_i] - softmax_i @ weight depends on row i alone, so any upstream
        # gradient only scales the row: it can be made here, before that gradient is known.
        needs_grad = ctx.needs_input_grad[0]
        jacobian_ND = torch.empty_like(hidden_ND) if needs_grad else None
        for start in range(0, len(labels_N), chunk):
            rows = slice(start, start + chunk)
            labels_C = labels_N[rows]
            logits_CV = (hidden_ND[rows] @ weight_VD.T).float()
            chosen_C = logits_CV.gather(1, labels_C[:, None]).squeeze(1)
            top_C = logits_CV.amax(1)
            odds_CV = logits_CV.sub_(top_C[:, None]).exp_()  # softmax, not divided yet: at most 1
            total_C = odds_CV.sum(1)
            logps_N[rows] = chosen_C - top_C - total_C.log()
            if jacobian_ND is not None:
                mean_CD = (odds_CV.to(weight_VD.dtype) @ weight_VD).float() / total_C[:, None]
                jacobian_ND[rows] = (weight_VD[labels_C] - mean_CD).to(hidden_ND.dtype)
        ctx.save_for_backward(jacobian_ND)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (jacobian_ND,) = ctx.saved_tensors
        return (jacobian_ND * gradients[0][:, None]).to(jacobian_ND.dtype), None, None, None


def logprobs(hidden_ND: Tensor, labels_N: Tensor, head: torch.nn.Module, *, chunk: int | None = None) -> Tensor:
    """Log-probability, in nats, that the head gives each label.

    hidden_ND: [N, D] final hidden states at the positions that predict (position t predicts token t + 1).
    labels_N: [N] int64 token ids. head: the LM head; a plain `nn.Linear` without bias and without a gradient of its own
    takes the fused way, any other (trained in full, wrapped by LoRA) is run and recomputed chunk by chunk.
    Returns [N] float32, differentiable in hidden_ND and in the head's parameters.
    """
    if type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad:
        weight_VD = head.weight
        if hidden_ND.dtype != weight_VD.dtype:
            hidden_ND = hidden_ND.to(weight_VD.dtype)
        return _ChunkedLogprobs.apply(hidden_ND, labels_N, weight_VD, chunk or chunk_rows(weight_VD.shape[0]))
    rows = chunk or 256
    parts = [
        checkpoint(_plain, hidden_ND[start : start + rows], labels_N[start : start + rows], head, use_reentrant=False)
        for start in range(0, len(labels_N), rows)
    ]
    return torch.cat(parts) if parts else hidden_ND.sum(-1).float()


@torch.no_grad()
def logprobs_and_entropies(
    hidden_ND: Tensor, labels_N: Tensor, head: torch.nn.Module, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """What `logprobs` and `entropies` give, [N] each, without gradients and from one pass over the head.

    The log-probabilities are those of `logprobs` to the bit: the same operations in the same order.
    """
    if not (type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad):
        return logprobs(hidden_ND, labels_N, head, chunk=chunk), entropies(hidden_ND, head, chunk=chunk)
    weight_VD, rows = head.weight, chunk or chunk_rows(head.weight.shape[0])
    hidden_ND = hidden_ND.to(weight_VD.dtype)
    logps_N = hidden_ND.new_empty(labels_N.shape, dtype=torch.float32)
    entropy_N = torch.empty_like(logps_N)
    for start in range(0, len(labels_N), rows):
        part = slice(start, start + rows)
        logits_CV = (hidden_ND[part] @ weight_VD.T).float()
        chosen_C = logits_CV.gather(1, labels_N[part][:, None]).squeeze(1)
        top_C = logits_CV.amax(1)
        below_CV = logits_CV.sub_(top_C[:, None])
        odds_CV = below_CV.exp()
        total_C = odds_CV.sum(1)
        logps_N[part] = chosen_C - top_C - total_C.log()
        entropy_N[part] = total_C.log() - odds_CV.mul_(below_CV.clamp_(min=_LEAST)).sum(1) / total_C
    return logps_N, entropy_N


def entropies(hidden_ND: Tensor, head: torch.nn.Module, *, chunk: int | None = None) -> Tensor:
    """[N] float32 entropy, in nats, of the distribution that the head gives at each position.

    Differentiable; each chunk is recomputed in the backward pass."""
    rows = chunk or chunk_rows(getattr(head, "out_features", 32_000))
    parts = [
        checkpoint(_entropy, hidden_ND[start : start + rows], head, use_reentrant=False)
        for start in range(0, len(hidden_ND), rows)
    ]
    return torch.cat(parts) if parts else hidden_ND.sum(-1).float()


def _entropy(hidden_CD: Tensor, head: torch.nn.Module) -> Tensor:
    logps_CV = head(hidden_CD).float().log_softmax(-1)
    return -(logps_CV.exp() * logps_CV).sum(-1)


def _plain(hidden_CD: Tensor, labels_C: Tensor, head: torch.nn.Module) -> Tensor:
    return head(hidden_CD).float().log_softmax(-1).gather(1, labels_C[:, None]).squeeze(1)

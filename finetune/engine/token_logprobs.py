"""Log-probabilities of a batch's trained tokens: decoder, selection, head. Every objective on tokens starts here."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from finetune.engine.batches import TokenBatch
from finetune.model.ragged import Layout, padded_hidden, ragged_hidden
from finetune.numerics.logprobs import logprobs

Hidden = Callable[[nn.Module, Tensor, Layout], Tensor]
"""(decoder, ids_T, layout) -> final hidden states [T, D]."""


def hidden_function(layout: str) -> Hidden:
    """The recipe's `train.layout`: ragged or padded."""
    return ragged_hidden if layout == "ragged" else padded_hidden


def token_logprobs(batch: TokenBatch, decoder: nn.Module, head: nn.Module, hidden: Hidden) -> Tensor:
    """[N] log-probability, in nats, of every trained token of the batch.

    decoder and head: the model's own, with the active adapter in place.
    """
    hidden_TD = hidden(decoder, batch.ids_T, batch.layout)
    return logprobs(hidden_TD.index_select(0, batch.predict_N), batch.labels_N, head)

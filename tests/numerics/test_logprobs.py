import math

import pytest
import torch
from torch import nn

from finetune.numerics.logprobs import chunk_rows, logprobs


def test_by_hand():
    # One row, hidden (1, 0), three words with weights (0, 0), (ln 2, 0), (ln 3, 5): logits 0, ln 2, ln 3, so the
    # probabilities are 1/6, 2/6, 3/6.
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0, 0.0], [math.log(2), 0.0], [math.log(3), 5.0]]))
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    result = logprobs(hidden, torch.tensor([1]), head)
    assert result.item() == pytest.approx(math.log(2 / 6))
    result.backward()
    # d/dh = w_1 - sum_v p_v w_v, second coordinate: 0 - 3/6 * 5
    assert hidden.grad[0, 1].item() == pytest.approx(-2.5)


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
@pytest.mark.parametrize("head_trains", [False, True])
def test_equals_the_plain_way(chunk, head_trains):
    torch.manual_seed(0)
    head = nn.Linear(16, 301, bias=False).requires_grad_(head_trains)
    hidden = torch.randn(50, 16, requires_grad=True)
    labels, upstream = torch.randint(0, 301, (50,)), torch.randn(50)
    ours = logprobs(hidden, labels, head, chunk=chunk)
    (ours * upstream).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    head_gradient, head.weight.grad = head.weight.grad, None
    plain = head(hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    (plain * upstream).sum().backward()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-5)
    if head_trains:
        torch.testing.assert_close(head_gradient, head.weight.grad, rtol=1e-5, atol=1e-5)


def test_a_head_with_lora_is_run_not_bypassed():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("head", nn.Linear(16, 40, bias=False))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["head"], init_lora_weights=False))
    hidden, labels = torch.randn(9, 16), torch.randint(0, 40, (9,))
    expected = model(hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    ours = logprobs(hidden, labels, model.get_base_model().head, chunk=4)
    torch.testing.assert_close(ours, expected)
    ours.sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "lora" in n)


def test_no_rows():
    head = nn.Linear(4, 5, bias=False).requires_grad_(False)
    assert logprobs(torch.empty(0, 4), torch.empty(0, dtype=torch.long), head).shape == (0,)


def test_half_precision_stays_close():
    torch.manual_seed(0)
    head = nn.Linear(64, 500, bias=False).requires_grad_(False)
    hidden, labels = torch.randn(40, 64), torch.randint(0, 500, (40,))
    wide = logprobs(hidden, labels, head)
    narrow = logprobs(hidden.bfloat16(), labels, head.bfloat16())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=2e-2, atol=2e-2)


def test_chunks_are_bounded_by_bytes():
    assert chunk_rows(32_000) * 32_000 * 4 <= 32 * 2**20
    assert chunk_rows(10**9) == 16

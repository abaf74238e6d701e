"""The reference of DPO: the very same numbers at the start, nothing of it ever moves, and its cache is right."""

from functools import partial

import numpy as np
import pytest
import torch
from comparison_lab import CPU, random_comparisons, shaken, tiny_model

from finetune.engine.comparisons import collate_groups
from finetune.engine.reference import REFERENCE, add_reference, once_ahead, reference_active, with_every_batch
from finetune.engine.token_logprobs import token_logprobs
from finetune.model import adapter
from finetune.model.ragged import ragged_hidden
from finetune.recipe.settings import AdapterSettings

DATA = random_comparisons(7, sizes=(2, 3))


@pytest.fixture
def started(tmp_path):
    """started(): (base, model) whose policy and reference are one saved adapter, with dropout. started(None): the bare
    base."""
    _, trained = tiny_model(dropout=0.5)
    folder = tmp_path / "adapter"
    adapter.save_adapter(shaken(trained), AdapterSettings(), folder, tmp_path, base_name="tiny", revision=None)

    def make(start=folder, **changes):
        base, model = tiny_model(**changes)
        if start is not None:
            base = model.unload()
            model = adapter.open_adapter(base, start)
        add_reference(model, start)
        return base, model

    return make


def logps(base, batch):
    with torch.no_grad():
        return token_logprobs(batch.answers, base.model, base.lm_head, ragged_hidden)


def reference_of(base, model):
    return with_every_batch(model, base.model, base.lm_head, ragged_hidden)


def batch_of(groups=range(7)):
    return collate_groups(DATA, list(groups), ranked="all")


def train_a_little(base, model):
    optimizer = torch.optim.AdamW(adapter.trainable(model).values(), lr=0.01)
    reference = reference_of(base, model)
    model.train()
    for _ in range(3):
        batch = batch_of()
        found = token_logprobs(batch.answers, base.model, base.lm_head, ragged_hidden)
        (reference(batch.answers) - found).square().mean().sub(found.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("start", ["adapter", None])
def test_at_the_start_every_log_ratio_is_exactly_zero(started, start):
    base, model = started() if start else started(None)
    batch = batch_of()
    assert torch.equal(logps(base, batch), reference_of(base, model)(batch.answers))


@pytest.mark.parametrize("changes", [{"dora": True}, {"init": "orthogonal"}, {"init": "pissa"}, {"init": "olora"}])
def test_a_fresh_adapter_that_is_the_base_only_up_to_rounding(started, changes):
    """Its own copy is the reference then: exactly 0 again, and the bare base up to rounding."""
    bare, _ = tiny_model()
    base, model = started(None, **changes)
    assert REFERENCE in model.peft_config
    batch = batch_of()
    found = reference_of(base, model)(batch.answers)
    assert torch.equal(logps(base, batch), found)
    torch.testing.assert_close(found, logps(bare, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["adapter", None])
def test_training_moves_the_policy_and_no_bit_of_the_reference(started, start):
    base, model = started() if start else started(None)
    batch = batch_of()
    before, policy = reference_of(base, model)(batch.answers), logps(base, batch)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    weights = adapter.state(model)
    assert not any(f".{REFERENCE}." in name for name in weights)
    train_a_little(base, model)
    assert torch.equal(reference_of(base, model)(batch.answers), before)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(not torch.equal(after, weights[name]) for name, after in adapter.state(model).items())
    assert (logps(base, batch) - policy).abs().max() > 1e-3


@pytest.mark.parametrize("start", ["adapter", None])
@pytest.mark.parametrize("training", [True, False])
def test_flags_and_modes_are_given_back(started, start, training):
    """Also after an error. Within, dropout is off and nothing has a gradient."""
    base, model = started() if start else started(None, dropout=0.5)
    shaken(model).train(training)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    batch = batch_of()

    def check():
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert model.active_adapter == adapter.ADAPTER

    with reference_active(model):
        one, two = logps(base, batch), logps(base, batch)
        assert not torch.is_grad_enabled() and torch.equal(one, two)
    check()
    with pytest.raises(RuntimeError, match="inside"), reference_active(model):
        raise RuntimeError("inside")
    check()
    if training:
        assert not torch.equal(logps(base, batch), logps(base, batch)), "dropout is on again"


def ahead(base, model, cache, data=DATA, key=("base", "adapter"), compute=None):
    """(log-probabilities, what was said)."""
    said = []
    found = once_ahead(
        compute or reference_of(base, model), data.rows, micro_batch_size=4, device=CPU, compute_dtype=torch.float32,
        cache=cache, key=key, say=said.append,
    )  # fmt: skip
    return found, said[0]


def never(batch):
    raise AssertionError("computed again")


def test_once_ahead_equals_with_every_batch(started, tmp_path):
    base, model = started()
    shaken(model)
    found, said = ahead(base, model, tmp_path / "cache")
    assert "17 answers, once ahead" in said
    for groups in ([0, 1, 2], [6, 3], [5]):
        batch = batch_of(groups)
        torch.testing.assert_close(found(batch.answers), reference_of(base, model)(batch.answers), rtol=1e-5, atol=1e-5)


def test_the_cache_is_found_again_and_only_for_the_same(started, tmp_path):
    base, model = started()
    make = partial(ahead, base, model, tmp_path)
    first, _ = make()
    again, said = make(compute=never)
    assert "found in the cache" in said
    batch = batch_of()
    assert torch.equal(first(batch.answers), again(batch.answers))
    for changed in (
        {"key": ("base", "other adapter")},
        {"key": ("other base", "adapter")},
        {"data": DATA.select(np.arange(6))},
    ):
        assert "once ahead" in make(**changed)[1]
    other = random_comparisons(7, sizes=(2, 3))
    other.rows.ids[-1] += 1
    assert "once ahead" in make(data=other)[1]
    other = random_comparisons(7, sizes=(2, 3))
    other.rows.trained[-1] = 0
    assert "once ahead" in make(data=other)[1]


@pytest.mark.parametrize("harm", ["truncated", "empty", "rubbish", "short", "not finite"])
def test_a_broken_cache_is_made_again(started, tmp_path, harm):
    base, model = started()
    first, _ = ahead(base, model, tmp_path)
    (file,) = tmp_path.glob("reference-*.npy")
    content = file.read_bytes()
    if harm in ("short", "not finite"):
        values = np.load(file)
        np.save(file, values[:-1] if harm == "short" else np.where(np.arange(len(values)) == 3, np.nan, values))
    else:
        file.write_bytes({"truncated": content[:-10], "empty": b"", "rubbish": b"not numpy" * 40}[harm])
    again, said = ahead(base, model, tmp_path)
    assert "once ahead" in said and file.read_bytes() == content
    assert torch.equal(first(batch_of().answers), again(batch_of().answers))
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from finetune.engine.optim import default_learning_rate, learning_rate, make_optimizer, warmup_steps
from finetune.recipe.train_settings import TrainSettings


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_equal_transformers(schedule):
    """After the warm-up the same numbers; in it one step ahead, since ours does not spend a step at rate 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, 4, 20),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, 4, 20),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, 4),
    }[schedule]()
    for step in range(20):
        ours = learning_rate(step, peak=0.5, total=20, warmup=4, schedule=schedule)
        if step >= 4:
            assert ours == pytest.approx(theirs.get_last_lr()[0])
        else:
            assert ours == pytest.approx(0.5 * (step + 1) / 4)
        optimizer.step()
        theirs.step()


def test_warm_up_is_a_share_or_a_number():
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(0.03, 10) == 1
    assert warmup_steps(0.0, 10) == 0
    assert warmup_steps(5, 100) == 5
    assert warmup_steps(500, 100) == 100


@pytest.mark.parametrize(
    ("hidden", "published"),
    [(2048, 4.9e-4), (3072, 3.6e-4), (4096, 2.9e-4), (5120, 2.4e-4), (6656, 2.0e-4), (8192, 1.7e-4)],
)
def test_default_rate_is_the_published_table(hidden, published):
    """The table for Llama 1B, 3B, 7/8B, 13B, 33B, 65/70B in tinker-cookbook's fit, alpha 32, to its two digits."""
    assert default_learning_rate(hidden, 32, 64, False) == pytest.approx(published, abs=0.05e-4)


def test_default_rate_keeps_rate_times_scale():
    base = default_learning_rate(4096, 32, 64, False)
    assert default_learning_rate(4096, 64, 64, False) == pytest.approx(base / 2)
    assert default_learning_rate(4096, 32, 16, False) == pytest.approx(base), "independent of rank at one alpha"
    # rsLoRA at rank 64 scales by 32 / 8 = 4 instead of 0.5
    assert default_learning_rate(4096, 32, 64, True) == pytest.approx(base / 8)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_every_optimizer_learns_and_resumes_to_the_same_bits(name):
    settings = TrainSettings(optimizer=name, betas=(0.9, 0.95), weight_decay=0.01)

    def steps(parameter, optimizer, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    start = torch.randn(128, 64)
    whole = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer([whole], settings)
    steps(whole, optimizer, 3, 1)
    middle, state = whole.detach().clone(), optimizer.state_dict()
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    steps(whole, optimizer, 3, 2)
    resumed = torch.nn.Parameter(middle.clone())
    again = make_optimizer([resumed], settings)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    steps(resumed, again, 3, 2)
    assert not torch.equal(whole, middle) and torch.equal(whole, resumed)

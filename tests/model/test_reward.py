"""Reward adapters: the head survives, plain peft gives the same scores, the damaged and the foreign are refused."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from finetune.errors import InputError, ProofError
from finetune.model import adapter, ragged
from finetune.model.ragged import Layout, ragged_hidden
from finetune.model.reward import HEAD_KEY, RewardModel, add_head, attach, new_head, open_reward, prove_head
from finetune.recipe.settings import AdapterSettings

LENGTHS = [7, 3, 12]
IDS = torch.randint(3, 61, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
PAD = 2


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=61, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def loaded(base_folder):
    base = LlamaForCausalLM.from_pretrained(base_folder).requires_grad_(False).eval()
    ragged.install(base)
    return base


def trained(base_folder, **changes):
    """A reward model whose every trainable weight has been moved."""
    settings = AdapterSettings(rank=4, **changes)
    model = adapter.new_adapter(loaded(base_folder), settings, seed=3)
    reward = RewardModel(model, new_head(32, 0, torch.device("cpu")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapter.trainable(reward).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return reward, settings


def saved(reward, settings, folder, work):
    adapter.save_adapter(reward.adapted, settings, folder, work, base_name="tiny", revision=None)
    add_head(folder, reward.score)
    return folder


@torch.no_grad()
def scores(model):
    hidden_TD = ragged_hidden(model.adapted.get_base_model().model, IDS, Layout.of_rows(LENGTHS))
    return model.scores(hidden_TD, torch.tensor(LENGTHS).cumsum(0) - 1)


CHANGES = [{}, {"dropout": 0.3}, {"dora": True}, {"modules_to_save": ["embed_tokens"]}, {"rslora": True}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_head_and_scores_survive_bit_for_bit(base_folder, tmp_path, changes):
    """Loaded on a base of its own, and beside others on the same base; also while the model is in training mode."""
    reward, settings = trained(base_folder, **changes)
    folder = saved(reward, settings, tmp_path / "reward", tmp_path)
    again = open_reward(loaded(base_folder), folder)
    assert torch.equal(again.score.weight, reward.score.weight)
    assert not adapter.trainable(again) and not again.training
    expected = scores(reward.eval())
    assert torch.equal(scores(again), expected)
    reward.train()
    found = prove_head(reward, folder, IDS, LENGTHS)
    assert found["max_abs_difference"] == 0 and found["scores"] == expected.tolist()
    assert reward.adapted.active_adapter == adapter.ADAPTER and "reloaded" not in reward.adapted.peft_config
    assert torch.equal(scores(reward), expected)


@pytest.mark.parametrize("changes", CHANGES[:4], ids=str)
def test_plain_transformers_and_peft_give_the_same_scores(base_folder, tmp_path, changes):
    """As any user of peft would load it: the pad token set, rows padded on either side."""
    reward, settings = trained(base_folder, **changes)
    folder = saved(reward, settings, tmp_path / "reward", tmp_path)
    expected = scores(reward.eval())
    classifier = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1, pad_token_id=PAD)
    model = PeftModel.from_pretrained(classifier, folder).eval()
    rows = IDS.split(LENGTHS)
    for side in ("right", "left"):
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side=side)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True, padding_side=side
        )
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits.squeeze(1), expected, rtol=1e-5, atol=1e-5)


def harm(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_what_is_damaged_is_not_proven(base_folder, tmp_path):
    """One bit of the head, one LoRA weight: the proof fails, and the trained model is left as it was."""
    reward, settings = trained(base_folder)
    folder = saved(reward, settings, tmp_path / "reward", tmp_path)
    expected = scores(reward.eval())

    def head_bit(tensors):
        tensors[HEAD_KEY].view(torch.int32)[0, 5] ^= 1 << 20

    def weight(tensors):
        name = next(name for name in tensors if "q_proj.lora_B" in name)
        tensors[name][0, 0] += 0.01

    for change in (head_bit, weight):
        copy = shutil.copytree(folder, tmp_path / change.__name__)
        harm(copy, change)
        with pytest.raises(ProofError, match="nothing was released"):
            prove_head(reward, copy, IDS, LENGTHS)
        assert torch.equal(scores(reward), expected)
    with torch.no_grad():
        reward.score.weight[0, 0] = float("nan")
    with pytest.raises(ProofError, match="not finite"):
        prove_head(reward, folder, IDS, LENGTHS)


def test_what_is_no_reward_model_is_refused(base_folder, tmp_path):
    reward, settings = trained(base_folder)
    sft = tmp_path / "sft"
    adapter.save_adapter(reward.adapted, settings, sft, tmp_path, base_name="tiny", revision=None)
    folder = saved(reward, settings, tmp_path / "reward", tmp_path)

    with pytest.raises(InputError, match="without a reward head: only the result of a reward stage can score"):
        open_reward(loaded(base_folder), sft)
    with pytest.raises(InputError, match="holds no adapter"):
        open_reward(loaded(base_folder), tmp_path)
    with pytest.raises(InputError, match="is a reward model, which scores answers"):
        adapter.open_adapter(loaded(base_folder), folder)

    def broken(name, change):
        copy = shutil.copytree(folder, tmp_path / name)
        harm(copy, change)
        return copy

    lora = next(name for name in load_file(folder / "adapter_model.safetensors") if "lora_A" in name)
    fewer = broken("fewer", lambda tensors: tensors.pop(lora))
    with pytest.raises(InputError, match="is not in the file"):
        open_reward(loaded(base_folder), fewer)
    with pytest.raises(InputError, match="is not in the file"):
        attach(reward.adapted, fewer, "other")
    more = broken("more", lambda tensors: tensors.update({lora.replace("layers.0", "layers.9"): torch.ones(4, 8)}))
    with pytest.raises(InputError, match="has no place in it"):
        open_reward(loaded(base_folder), more)
    narrow = broken("narrow", lambda tensors: tensors.update({HEAD_KEY: torch.ones(1, 16)}))
    with pytest.raises(InputError, match="this base has 32 dimensions"):
        open_reward(loaded(base_folder), narrow)
    other = broken("other", lambda tensors: tensors.update({lora: torch.ones(4, 8)}))
    with pytest.raises(InputError, match="does not fit this base"):
        open_reward(loaded(base_folder), other)
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        open_reward(loaded(base_folder), cut)


def test_the_files_say_what_they_are(base_folder, tmp_path):
    reward, settings = trained(base_folder, modules_to_save=["embed_tokens"])
    folder = saved(reward, settings, tmp_path / "reward", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["embed_tokens", "score"]
    head = load_file(folder / "adapter_model.safetensors")[HEAD_KEY]
    assert head.dtype == torch.float32 and torch.equal(head, reward.score.weight)


def test_a_fresh_head_depends_on_the_seed_alone():
    cpu = torch.device("cpu")
    torch.manual_seed(1)
    one = new_head(64, 7, cpu).weight
    torch.manual_seed(2)
    assert torch.equal(one, new_head(64, 7, cpu).weight) and not torch.equal(one, new_head(64, 8, cpu).weight)
    assert new_head(4096, 0, cpu).weight.std().item() == pytest.approx(4097**-0.5, rel=0.05)

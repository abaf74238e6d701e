"""Fingerprints, states and estimates. No torch anywhere here."""

import json
import shutil
import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from finetune.plan.estimate import GIB, Shape, estimate, lora_parameters
from finetune.plan.manifest import check_files, read_manifest, write_manifest
from finetune.plan.plan import make_plan
from finetune.recipe.load import recipe_from_dict
from finetune.recipe.schema import Stage
from finetune.recipe.settings import AdapterSettings, ModelSettings

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 128,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


def plan(folder, change=lambda data: None, runs="runs"):
    data = {
        "name": "plan",
        "model": {"base": "base"},
        "stages": {
            "first": {"kind": "sft", "data": [{"path": "rows.jsonl"}]},
            "second": {"kind": "sft", "start_from": "first", "data": [{"path": "rows.jsonl"}]},
        },
    }
    change(data)
    return make_plan(recipe_from_dict(data, folder), folder / runs)


def prints(made):
    return [stage.fingerprint for stage in made.stages]


def test_the_same_inputs_have_the_same_fingerprint(folder, tmp_path_factory):
    first = plan(folder)
    assert prints(plan(folder)) == prints(first)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, elsewhere)
    assert prints(plan(elsewhere, runs="other")) == prints(first), "where things lie must not count"
    assert first.stages[0].folder == folder / "runs" / "plan" / f"first-{first.stages[0].fingerprint[:12]}"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(seed=18),
        lambda data: data["model"].update(load_in="bf16"),
        lambda data: data.update(adapter={"rank": 8}),
        lambda data: data["stages"]["first"].update(train={"epochs": 1}),
        lambda data: data["stages"]["first"]["data"][0].update(take=1),
        lambda data: data["stages"]["first"].update(held_out={"fraction": 0.5}),
    ],
)
def test_a_changed_value_changes_the_stage_and_what_reads_it(folder, change):
    before, after = prints(plan(folder)), prints(plan(folder, change))
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize("path", ["rows.jsonl", "base/config.json", "base/model.safetensors", "base/tokenizer.json"])
def test_changed_content_changes_it(folder, path):
    before = prints(plan(folder))
    content = (folder / path).read_text()
    (folder / path).write_text(content.replace("}", " }") if path.endswith("json") else content + "\n\n ")
    assert prints(plan(folder))[0] != before[0]


def test_a_change_below_leaves_the_stage_above(folder):
    before = prints(plan(folder))
    after = prints(plan(folder, lambda data: data["stages"]["second"].update(train={"epochs": 1})))
    assert before[0] == after[0] and before[1] != after[1]


def test_names_and_tracking_do_not_count(folder):
    def change(data):
        data["name"] = "other"
        data["track"] = {"wandb": {"project": "p"}}

    assert prints(plan(folder, change)) == prints(plan(folder))


def test_inputs_and_states(folder):
    made = plan(folder)
    assert [stage.inputs for stage in made.stages] == [(), ("first",)]
    assert [stage.state for stage in made.stages] == ["to do", "to do"]
    assert [stage.name for stage in made.needed_for({"second"})] == ["first", "second"]
    made.stages[0].folder.mkdir(parents=True)
    made.stages[1].part.mkdir()
    assert [stage.state for stage in plan(folder).stages] == ["to do", "started"], (
        "a folder without manifest is not done"
    )
    write_manifest(made.stages[0].folder, {"files": {}})
    assert plan(folder).stages[0].state == "done"


def test_the_manifest_notices_damage(tmp_path):
    from finetune.durable import describe_files
    from finetune.errors import InputError

    (tmp_path / "weights").write_bytes(b"abc")
    write_manifest(tmp_path, {"files": describe_files(tmp_path)})
    check_files(tmp_path, read_manifest(tmp_path))
    (tmp_path / "weights").write_bytes(b"abd")
    with pytest.raises(InputError, match="weights has another sha256"):
        check_files(tmp_path, read_manifest(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_manifest(tmp_path)


def llama(hidden, layers, heads, kv, ffn, vocabulary, tied=False):
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": ffn, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip


LLAMA_3_8B = llama(4096, 32, 32, 8, 14336, 128256)
LLAMA_3_70B = llama(8192, 80, 64, 8, 28672, 128256)
LLAMA_32_1B = llama(2048, 16, 32, 8, 8192, 128256, tied=True)


@pytest.mark.parametrize(
    ("config", "parameters", "per_rank"),
    [
        (LLAMA_3_8B, 8_030_261_248, 2_621_440),
        (LLAMA_3_70B, 70_553_706_496, 12_943_360),
        (LLAMA_32_1B, 1_235_814_400, 704_512),
        (llama(4096, 32, 32, 32, 11008, 32000), 6_738_415_616, 2_498_560),
    ],
)
def test_parameter_counts_are_the_published_ones(config, parameters, per_rank):
    shape = Shape.of(config)
    assert shape.parameters == parameters
    assert lora_parameters(shape, AdapterSettings(rank=1)) == per_rank


@pytest.mark.parametrize(("config", "gib"), [(LLAMA_3_8B, 5.31), (LLAMA_3_70B, 36.80), (LLAMA_32_1B, 0.96)])
def test_nf4_weights_take_what_the_formula_says(config, gib):
    """Double-quantised blocks at 4.127 bits, embeddings and head in bf16."""
    need = needs(config)
    assert need.weights / GIB == pytest.approx(gib, abs=0.01)


def needs(config=LLAMA_3_8B, stage=None, model=None, adapter=None, **train):
    """The estimate for one stage, sft unless it is given; train: keys of its train section."""
    given = {"kind": "sft", **(stage or {})}
    if given["kind"] in ("sft", "reward", "dpo"):
        given["data"] = [{"path": "rows.jsonl"}]
    if train:
        given["train"] = {**given.get("train", {}), **train}
    settings = TypeAdapter(Stage).validate_python(given)
    return estimate(config, ModelSettings(base="b", **(model or {})), AdapterSettings(**(adapter or {})), settings)


def test_memory_grows_with_what_it_should():
    usual = needs()
    assert needs(model={"load_in": "bf16"}).weights > 2.5 * usual.weights
    assert needs(adapter={"rank": 128}).trainable == 2 * usual.trainable
    assert needs(micro_batch_size=8).activations > 1.8 * usual.activations
    assert needs(gradient_checkpointing=True).activations < 0.2 * usual.activations
    assert needs(optimizer="adamw_8bit").optimizer == usual.optimizer / 4
    assert needs(keep_checkpoints=5).disk > usual.disk


TOY = llama(8, 2, 4, 2, 16, 100)
"""Heads of 2: q and o 8x8, k and v 8x4, three of 8x16: 384 + 192 weights a block."""


def test_what_sampling_stages_need_by_hand():
    """rank 1: q, o 16 each, k, v 12 each, gate, up, down 24 each = 128 a block, 256 in all; float32."""
    model, adapter = {"load_in": "fp32", "max_length": 10}, {"rank": 1}
    reject = {"kind": "reject", "policy": "sft", "reward": "rm", "prompts": [{"path": "p"}], "rows_at_once": 3}
    need = needs(TOY, reject, model, adapter)
    assert (need.trainable, need.adapter, need.optimizer, need.activations, need.head) == (0, 0, 0, 0, 0)
    assert need.frozen == 2 * 256 * 4, "policy and reward"
    keys_values = 3 * 10 * 2 * 2 * 2 * 2 * 4  # answers x tokens x layers x (k, v) x heads x size x bytes
    logits = 3 * 3 * 100 * 4
    block = 8192 * (10 * 8 + 4 * 16 + 2 * (4 + 4) * 2) * 4  # a portion of prompts through one block
    assert need.cache == keys_values + logits + block
    assert need.memory == need.weights + need.frozen + need.cache
    bare = needs(TOY, reject | {"policy": None, "reward": None, "checker": {"kind": "json"}}, model)
    assert bare.frozen == 0


def test_what_ppo_needs_by_hand():
    model, adapter = {"load_in": "fp32", "max_length": 10}, {"rank": 1}
    ppo = {"kind": "ppo", "start_from": "sft", "reward": "rm", "prompts": [{"path": "p"}], "rows_at_once": 3}
    train = {"micro_batch_size": 4}
    need = needs(TOY, ppo, model, adapter, **train)
    assert need.trainable == 2 * 256, "policy and value"
    assert (need.adapter, need.optimizer) == (512 * 8, 512 * 8)
    assert need.frozen == 2 * 256 * 4, "reference and reward"
    sft = needs(TOY, None, model, adapter, **train)
    assert (need.activations, need.head) == (sft.activations, sft.head), "policy and value learn one after the other"
    assert need.memory == need.weights + need.adapter + need.frozen + need.optimizer + max(
        need.activations + need.head, need.cache
    )
    two = needs(TOY, ppo | {"start_from": None, "safety": {"reward": "s"}}, model, adapter)
    assert two.frozen == 2 * 256 * 4, "a fresh adapter's reference is the base; two reward models"


def test_what_comparisons_need():
    usual = needs()
    for kind in ("reward", "dpo"):
        assert needs(stage={"kind": kind}).activations == pytest.approx(2 * usual.activations, rel=0.01), "two answers"
    assert (
        needs(stage={"kind": "dpo"}).frozen
        == needs(stage={"kind": "dpo", "start_from": "a", "loss": "orpo"}).frozen
        == 0
    )
    assert needs(stage={"kind": "dpo", "start_from": "a"}).frozen == usual.trainable * 4


def test_what_averages_need():
    lora = needs().trainable
    exact = needs(stage={"kind": "average", "of": ["a", "b", "c"]})
    assert (exact.trainable, exact.frozen) == (0, (3 + 3) * lora * 4), "the ranks add up"
    assert exact.memory == needs().weights + exact.frozen, "the mean is proven on the base"
    assert exact.disk == 3 * lora * 4 + 32 * 2**20
    small = needs(stage={"kind": "average", "of": ["a", "b", "c"], "rank": 64})
    assert small.frozen == (3 + 1) * lora * 4


def test_what_grpo_needs_beside_sft():
    grpo = {"kind": "grpo", "start_from": "a", "reward": "rm", "prompts": [{"path": "p"}], "train": {"batch_size": 8}}
    need = needs(stage=grpo)
    assert need.frozen == needs().trainable * 4, "the reward model; without kl there is no reference"
    assert needs(stage=grpo | {"kl": 0.1}).frozen == 2 * need.frozen
    assert need.head == 4 * 256 * 128256 * (2 + 4), "logits of all answer tokens"
    assert needs(stage=grpo | {"train": {"batch_size": 16}}).cache > need.cache, (
        "TRL writes all answers of a step at once"
    )


def test_planning_imports_no_torch(folder):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_plan import plan; plan(Path(sys.argv[1])); assert 'torch' not in sys.modules;"
        "assert 'transformers' not in sys.modules and 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(__file__).rsplit("/", 1)[0]], check=True)

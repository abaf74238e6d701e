"""`finetune merge`: runs to folders that plain transformers loads, proven or refused."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil

import pytest
import torch
import yaml
from release_lab import manifest_of, run_of
from stage_recipes import sft_stage, train, write_jsonl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune.cli.main import main
from finetune.durable import describe_files
from finetune.model.adapter import open_adapter
from finetune.model.base import Precision, load_base
from finetune.model.reward import open_reward
from finetune.release import combine
from finetune.release import merge as merge_module
from finetune.release.merge_sources import MergeSettings
from finetune.release.merge_weights import Merging

IDS = torch.arange(3, 60)[None]


def merged(capsys, *args):
    """(exit code, what was said)."""
    capsys.readouterr()
    code = main(["merge", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def as_trained(lab, recipe, stage, load_in):
    base = load_base(lab / "base", Precision(load_in, torch.float32), torch.device("cpu"))
    return open_adapter(base, run_of(lab, recipe, stage)).eval()


def test_a_plain_run_merges_into_what_was_trained(lab, tmp_path, capsys):
    code, said = merged(
        capsys, run_of(lab, "plain", "sft"), "--out", tmp_path / "out", "--prompts", lab / "held_out.jsonl"
    )
    assert code == 0 and "proof" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # no .part, no lock
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    torch.testing.assert_close(logits(ours), logits(as_trained(lab, "plain", "sft", "fp32")), rtol=1e-4, atol=1e-4)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["kind"] == "merged" and manifest["merge"]["into"] == "original"
    assert manifest["made_from"] == [manifest_of(run_of(lab, "plain", "sft"))]
    assert manifest["files"] == describe_files(tmp_path / "out", leave_out=["manifest.json"])
    proof = manifest["proof"]
    assert proof["rows"] == 4 + 1 + 16 and proof["as_trained"]["mean_kl"] < 1e-6
    assert (tmp_path / "out" / "LICENSE").read_text() == "the base's licence\n"
    row = torch.tensor([proof["last_row_ids"]])
    with torch.no_grad():
        found = ours(row).logits[0, -1].log_softmax(-1)
    assert found.topk(8).indices.tolist() == proof["last_row_top_ids"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(run_of(lab, "plain", "sft"))
    chat = [{"role": "user", "content": "What is 3?"}]
    for kind in (tokenizer, theirs):
        assert "<|start_header_id|>" in kind.apply_chat_template(chat, tokenize=False)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
    assert (
        ours.generation_config.eos_token_id
        == json.loads((run_of(lab, "plain", "sft") / "generation_config.json").read_text())["eos_token_id"]
    )


def test_a_quantised_run_offers_both_bases_and_tells_the_difference(lab, tmp_path, capsys):
    run = run_of(lab, "quantised", "sft")
    code, said = merged(capsys, run, "--out", tmp_path / "as-trained")
    assert code == 0 and "into the dequantised base: mean KL" in said and "into the original base: mean KL" in said
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "as-trained", dtype="auto")
    torch.testing.assert_close(logits(ours), logits(as_trained(lab, "quantised", "sft", "nf4")), rtol=1e-3, atol=1e-3)
    options = manifest_of(tmp_path / "as-trained")["proof"]["options"]
    assert options["dequantised"]["mean_kl"] < 1e-6 < options["original"]["mean_kl"]

    # On random weights NF4 changes much more than on a trained model: refused, with the figures.
    code, said = merged(capsys, run, "--out", tmp_path / "original", "--into", "original")
    assert code == 1 and "mean KL" in said and "0.1 is allowed" in said and "Nothing was released" in said
    assert not (tmp_path / "original").exists() and not (tmp_path / "original.part").exists()

    code, said = merged(capsys, run, "--out", tmp_path / "original", "--into", "original", "--bound", "100")
    assert code == 0
    proof = manifest_of(tmp_path / "original")["proof"]
    assert proof["unmerged"]["mean_kl"] < 1e-6  # the original base with the same adapter
    assert proof["as_trained"]["mean_kl"] == pytest.approx(options["original"]["mean_kl"], rel=1e-3)
    assert proof["options"]["dequantised"]["mean_kl"] < 1e-6
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype="auto")
    unmerged = as_trained(lab, "quantised", "sft", "fp32")
    torch.testing.assert_close(logits(ours), logits(unmerged), rtol=1e-3, atol=1e-3)


def test_a_reward_model_becomes_a_classifier_that_scores_alike(lab, tmp_path, capsys):
    run = run_of(lab, "quantised", "reward")
    code, said = merged(capsys, run, "--out", tmp_path / "judge")
    assert code == 0 and "scores differ" in said
    ours = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge", dtype="auto").eval()
    assert ours.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "judge")
    reward = open_reward(load_base(lab / "base", Precision("nf4", torch.float32), torch.device("cpu")), run)
    texts = ["What is 1? It is 1.", "No.", "What is it? Yes. Yes."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")  # padded: the classifier finds each last token
    with torch.no_grad():
        found = ours(**batch).logits[:, 0]
        for text, score in zip(texts, found, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            hidden = reward.adapted.get_base_model().model(input_ids=ids).last_hidden_state[0]
            theirs = reward.scores(hidden, torch.tensor([ids.shape[1] - 1]))
            torch.testing.assert_close(score[None], theirs, rtol=1e-3, atol=1e-3)
    code, said = merged(capsys, run, run_of(lab, "quantised", "sft"), "--out", tmp_path / "no")
    assert code == 2 and "cannot be merged" in said


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dora", {"adapter.dora": True}),
        ("pissa", {"adapter.init": "pissa", "model.load_in": "fp32"}),
        ("head", {"adapter.modules_to_save": ["lm_head"], "adapter.rslora": True}),
        ("int8", {"model.load_in": "int8"}),
        ("bf16", {"model.load_in": "bf16"}),
    ],
)
def test_every_kind_of_adapter_and_base(walk, tmp_path, capsys, name, changes):
    """As the recipe makes them; the proof compares each with the adapter on its base."""
    changes = {"model.load_in": "nf4", **changes}
    run = walk({"sft": sft_stage(train=train(max_steps=3))}, changes).folders["sft"]
    code, said = merged(capsys, run, "--out", tmp_path / "out")
    assert code == 0, said
    proof = manifest_of(tmp_path / "out")["proof"]
    # int8 multiplies rounded activations, so even the same weights answer a little differently.
    assert proof["as_trained"]["mean_kl"] <= {"int8": 0.1, "bf16": 0.01}.get(name, 1e-6)
    assert ("unmerged" in proof) == (name == "int8")


def test_several_adapters(lab, tmp_path, capsys):
    runs = [run_of(lab, "plain", "sft"), run_of(lab, "plain", "other")]
    for method in ("linear", "svd", "ties", "dare", "slerp"):
        code, said = merged(capsys, *runs, "--out", tmp_path / method, "--method", method, "--weights", "0.75,0.25")
        assert code == 0 and ("all adapters at once" if method == "linear" else "formula in float32") in said, said
        manifest = manifest_of(tmp_path / method)
        assert manifest["merge"]["method"] == method and len(manifest["made_from"]) == 2
        assert set(manifest["proof"]["from_each"]) == {"plain/sft", "plain/other"}
        if method == "linear":
            assert (
                0
                <= manifest["proof"]["together"]["mean_kl"]
                < 1e-6
                < manifest["proof"]["from_each"]["plain/sft"]["mean_kl"]
            )
    q = "model.layers.0.mlp.up_proj.weight"
    weights = {path.name: AutoModelForCausalLM.from_pretrained(path).state_dict()[q] for path in tmp_path.iterdir()}
    assert len({weight.numpy().tobytes() for weight in weights.values()}) == 5

    # Two merged folders: slerp between them is slerp between the runs.
    for run, name in zip(runs, ("a", "b"), strict=True):
        assert merged(capsys, run, "--out", tmp_path / name)[0] == 0
    folders = [tmp_path / "a", tmp_path / "b"]
    code, said = merged(capsys, *folders, "--out", tmp_path / "ab", "--method", "slerp", "--weights", "0.75,0.25")
    assert code == 0, said
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "ab").state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path / "slerp").state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    code, said = merged(capsys, *folders, "--out", tmp_path / "no", "--method", "ties")
    assert code == 2 and "slerp" in said
    code, said = merged(capsys, folders[0], runs[0], "--out", tmp_path / "no", "--method", "slerp")
    assert code == 2 and "mixed" in said


def test_a_wrong_sum_is_found_by_peft(lab, tmp_path, capsys, monkeypatch):
    """The formula itself is wrong, in the files and in what they are compared with alike."""
    right = combine.linear
    monkeypatch.setattr(combine, "linear", lambda changes, weights: right(changes, weights[::-1]))
    for recipe in ("plain", "quantised"):
        runs = [run_of(lab, recipe, "sft"), run_of(lab, recipe, "other")]
        code, said = merged(capsys, *runs, "--out", tmp_path / "out", "--weights", "0.9,0.1")
        assert code == 1 and "all adapters at their weights" in said, said
    assert list(tmp_path.iterdir()) == []


def test_dare_is_fixed_by_its_seed(lab, tmp_path, capsys):
    runs = [run_of(lab, "plain", "sft"), run_of(lab, "plain", "other")]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert merged(capsys, *runs, "--out", tmp_path / name, "--method", "dare", "--seed", seed)[0] == 0
    a, b, c = (manifest_of(tmp_path / name)["files"]["model.safetensors"]["sha256"] for name in "abc")
    assert a == b != c


def test_a_model_that_does_not_fit_is_proven_by_its_tensors(lab, tmp_path, capsys, monkeypatch):
    run = run_of(lab, "quantised", "sft")
    code, said = merged(capsys, run, "--out", tmp_path / "out", "--proof", "tensors")
    assert code == 0 and "the model as a whole was not loaded" in said
    proof = manifest_of(tmp_path / "out")["proof"]
    assert proof["compared"] == "tensors" and proof["largest_relative"] < 1e-5

    def wrong(self, entry):
        return self.value(entry.name).to(entry.dtype) * (1.01 if "down_proj" in entry.name else 1.0)

    monkeypatch.setattr(Merging, "rounded", wrong)
    code, said = merged(capsys, run, "--out", tmp_path / "bad", "--proof", "tensors")
    assert code == 1 and "down_proj" in said and not (tmp_path / "bad").exists()


def test_a_merge_that_is_wrong_is_refused_with_the_figures(lab, tmp_path, capsys, monkeypatch):
    """The folder's weights are not what they should be: the sign of one layer's change is turned."""

    def wrong(self, entry):
        value = self.value(entry.name)
        if entry.name.endswith("layers.1.mlp.up_proj.weight"):
            value = 2 * self.base_value(entry.name) - value
        return value.to(entry.dtype)

    monkeypatch.setattr(Merging, "rounded", wrong)
    for recipe in ("plain", "quantised"):
        code, said = merged(capsys, run_of(lab, recipe, "sft"), "--out", tmp_path / "bad")
        assert code == 1 and "mean KL" in said and "at most 1e-06" in said, said
        assert list(tmp_path.iterdir()) == []


def test_damage_is_refused_before_anything_is_written(lab, tmp_path, capsys):
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"):
        broken = tmp_path / f"broken-{name}"
        shutil.copytree(run_of(lab, "plain", "sft"), broken)
        content = bytearray((broken / name).read_bytes())
        content[-2] ^= 1
        (broken / name).write_bytes(content)
        code, said = merged(capsys, broken, "--out", tmp_path / "out")
        assert code == 2 and name in said and "sha256" in said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_infinite_weights_are_refused(lab, tmp_path, capsys):
    """An adapter whose hashes are right, but not its weights."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(run_of(lab, "plain", "sft"), broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors[next(name for name in tensors if "v_proj.lora_B" in name)][0, 0] = float("inf")
    save_file(tensors, broken / "adapter_model.safetensors")
    manifest = manifest_of(broken)
    manifest["files"] = describe_files(broken, leave_out=["manifest.json"])
    (broken / "manifest.json").write_text(json.dumps(manifest))
    code, said = merged(capsys, broken, "--out", tmp_path / "out")
    assert code == 1 and "v_proj" in said and "not finite" in said
    assert not (tmp_path / "out.part").exists()


def test_what_is_asked_wrongly(lab, tmp_path, capsys):
    sft, other = run_of(lab, "plain", "sft"), run_of(lab, "plain", "other")
    out = ["--out", tmp_path / "out"]
    for args, words in (
        ([tmp_path, *out], "no manifest.json"),
        ([sft, sft, *out], "twice"),
        ([sft, *out, "--method", "ties"], "two runs or more"),
        ([sft, other, *out, "--weights", "1"], "1 numbers for 2 runs"),
        ([sft, *out, "--weights", "x"], "numbers with commas"),
        ([sft, *out, "--into", "dequantised"], "no 4-bit values"),
        ([sft, run_of(lab, "plain", "other"), *out, "--method", "ties", "--density", "0"], "no share"),
        ([sft, *out, "--prompts", tmp_path / "none.jsonl"], "no such file"),
        ([sft, "--out", lab / "base"], "there already"),
        ([sft, *out, "--base", lab / "runs"], "config.json"),
    ):
        code, said = merged(capsys, *args)
        assert code == 2 and words in said, said
        assert list(tmp_path.iterdir()) == []


def test_a_base_of_another_digest_is_refused(lab, tmp_path, capsys):
    shutil.copytree(lab / "base", tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-3}))
    code, said = merged(capsys, run_of(lab, "plain", "sft"), "--out", tmp_path / "out", "--base", tmp_path / "base")
    assert code == 2 and "is not the base" in said


def test_a_full_disk_is_told_and_leaves_nothing(lab, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge_module, "write_file", full)
    code, said = merged(capsys, run_of(lab, "plain", "sft"), "--out", tmp_path / "out")
    assert code == 2 and "the disk is full" in said
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_write_one_folder(lab, tmp_path, capsys):
    with (tmp_path / "out.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, said = merged(capsys, run_of(lab, "plain", "sft"), "--out", tmp_path / "out")
    assert code == 2 and "another process" in said and not (tmp_path / "out.part").exists()


def test_killed_before_the_end_nothing_looks_finished(lab, tmp_path, monkeypatch):
    run = run_of(lab, "plain", "sft")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(merge_module, "_prove", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_module.merge([run], tmp_path / "out", MergeSettings(), say=print)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.part").mkdir()  # a kill -9 leaves this
    (tmp_path / "out.part" / "left").touch()
    monkeypatch.undo()
    merge_module.merge([run], tmp_path / "out", MergeSettings(), say=print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] and not (tmp_path / "out" / "left").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_weights(shared, tmp_path, capsys, dtype):
    """stories260K, trained for a few steps in nf4: both options stay close to it, and it goes on telling stories."""
    from finetune.cli.walk import walk

    base = tmp_path / "base"
    shutil.copytree(shared / "models" / "stories260K", base)
    for path in base.iterdir():
        path.chmod(0o644)
    if dtype != torch.float32:
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    stories = ["Tom had a red ball. He lost it.", "Lily went to the park with her mom and saw a big dog."] * 8
    rows = [{"text": f"{story} It was day {i}."} for i, story in enumerate(stories)]
    write_jsonl(tmp_path / "stories.jsonl", rows)
    recipe = {
        "name": "stories",
        "model": {"base": "base", "max_length": 128, "template": "plain"},
        "adapter": {"rank": 8, "alpha": 16},
        "stages": {"sft": sft_stage(data=[{"path": "stories.jsonl"}], train=train(max_steps=8, learning_rate=0.002))},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    walk(tmp_path / "recipe.yaml", (), tmp_path / "runs", kinds=None)
    run = run_of(tmp_path, "stories", "sft")
    args = [run, "--prompts", tmp_path / "stories.jsonl"]
    code, said = merged(capsys, *args, "--out", tmp_path / "dequantised")
    assert code == 0, said
    code, said = merged(capsys, *args, "--out", tmp_path / "original", "--into", "original", "--bound", "0.5")
    assert code == 0, said
    proof = manifest_of(tmp_path / "original")["proof"]
    rounding = 1e-6 if dtype == torch.float32 else 0.01
    assert proof["unmerged"]["mean_kl"] <= rounding and proof["unmerged"]["top1"] > 0.9
    assert proof["options"]["dequantised"]["mean_kl"] <= rounding < proof["options"]["original"]["mean_kl"]

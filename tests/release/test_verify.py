"""`finetune verify`: what is whole passes; each kind of damage is refused with its reason.

A file whose hash differs is found first. Whoever damages a file and corrects its hash in the manifest is found by what
the folder does: those tests rewrite the manifest.
"""

from __future__ import annotations

import json
import shutil

import pytest
from release_lab import manifest_of, run_of
from safetensors.torch import load_file, save_file

from finetune.cli.main import main
from finetune.durable import describe_files


@pytest.fixture(scope="module")
def folders(lab, tmp_path_factory):
    """Whole folders of every kind that is loaded: an nf4 adapter, a reward adapter, both merged."""
    place = tmp_path_factory.mktemp("whole")
    found = {"adapter": run_of(lab, "quantised", "sft"), "reward": run_of(lab, "quantised", "reward")}
    for name in ("adapter", "reward"):
        assert main(["merge", str(found[name]), "--out", str(place / name)]) == 0
        found[f"merged {name}"] = place / name
    return found


def verified(capsys, *args):
    capsys.readouterr()
    code = main(["verify", *map(str, args)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def copy(folder, place):
    shutil.copytree(folder, place)
    return place


def with_right_hashes(folder):
    manifest = manifest_of(folder)
    manifest["files"] = describe_files(folder, leave_out=["manifest.json"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


WEIGHTS = {"adapter": "adapter_model.safetensors", "reward": "adapter_model.safetensors"}
KINDS = ["adapter", "reward", "merged adapter", "merged reward"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_verified(folders, tmp_path, capsys, kind):
    folder = copy(folders[kind], tmp_path / "downloaded")  # it verifies wherever it lies
    (folder / "README.md").write_text("added later")
    code, said = verified(capsys, folder)
    assert code == 0, said
    what = "score" if "reward" in kind else "log-probs" if "merged" in kind else "logits"
    assert f"{what}: loaded again" in said and "tokenizer and template" in said and "not checked: README.md" in said
    assert "off by 0 of" in said or "off by " in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json", "config", "weights"]
)
def test_a_changed_byte_is_found(folders, tmp_path, capsys, kind, name):
    folder = copy(folders[kind], tmp_path / "broken")
    name = {
        "weights": WEIGHTS.get(kind, "model.safetensors"),
        "config": "config.json" if "merged" in kind else "adapter_config.json",
    }.get(name, name)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    code, said = verified(capsys, folder, "--files-only")
    assert code == 1 and name in said and "sha256" in said


def test_a_missing_and_a_cut_file_are_found(folders, tmp_path, capsys):
    folder = copy(folders["adapter"], tmp_path / "broken")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "bytes" in verified(capsys, folder)[1]
    path.unlink()
    code, said = verified(capsys, folder)
    assert code == 1 and "is missing" in said


def change_weights(folder, part, change):
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    (name, *_) = (name for name in tensors if part in name)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def change_text(folder, name, old, new):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def change_json(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE = {
    "weights of the adapter": ("adapter", lambda f: change_weights(f, "lora_B", lambda t: -t), "logits"),
    "not a number": ("adapter", lambda f: change_weights(f, "lora_B", lambda t: t * float("nan")), "logits"),
    "scale": ("adapter", lambda f: change_json(f, "adapter_config.json", lora_alpha=80), "logits"),
    "rank": ("adapter", lambda f: change_json(f, "adapter_config.json", r=2), "cannot be loaded"),
    "kind": ("adapter", lambda f: change_json(f, "adapter_config.json", peft_type="LOHA"), "cannot be loaded"),
    "head": ("reward", lambda f: change_weights(f, "score", lambda t: t.flip(1)), "score"),
    "shape of the head": ("reward", lambda f: change_weights(f, "score", lambda t: t[:, :3]), "cannot be loaded"),
    "merged weights": ("merged adapter", lambda f: change_weights(f, "up_proj", lambda t: t.flip(0)), "log-probs"),
    "merged head": ("merged reward", lambda f: change_weights(f, "score", lambda t: -t), "score"),
    "merged config": ("merged adapter", lambda f: change_json(f, "config.json", rms_norm_eps=0.5), "log-probs"),
    "merged layers": ("merged adapter", lambda f: change_json(f, "config.json", num_hidden_layers=1), "unexpected"),
    "template": (
        "adapter",
        lambda f: change_text(f, "chat_template.jinja", "'assistant<|end_header_id|>", "'model<|end_header_id|>")
        if "'assistant<|end_header_id|>" in (f / "chat_template.jinja").read_text()
        else change_text(f, "chat_template.jinja", "assistant<|end_header_id|>", "model<|end_header_id|>"),
        "chat_template.jinja",
    ),
    "template without end": (
        "merged adapter",
        lambda f: (f / "chat_template.jinja").write_text((f / "chat_template.jinja").read_text()[:-20]),
        "chat template",
    ),
    "tokenizer": ("adapter", lambda f: change_text(f, "tokenizer.json", '"isolated"', '"removed"')
                  if '"isolated"' in (f / "tokenizer.json").read_text()
                  else change_text(f, "tokenizer.json", '"Isolated"', '"Removed"'), "tokenizer"),
    "tokenizer that is none": ("adapter", lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer is damaged"),
    "stop tokens": ("adapter", lambda f: change_json(f, "generation_config.json", eos_token_id=[1]), "go on talking"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_under_a_right_hash_is_found_by_what_it_does(folders, tmp_path, capsys, damage):
    kind, change, reason = DAMAGE[damage]
    folder = copy(folders[kind], tmp_path / "broken")
    change(folder)
    with_right_hashes(folder)
    assert verified(capsys, folder, "--files-only")[0] == 0
    code, said = verified(capsys, folder)
    assert code == 1 and reason in said, said


def test_folders_that_are_none(tmp_path, folders, lab, capsys):
    code, said = verified(capsys, tmp_path)
    assert code == 2 and "no manifest.json" in said
    folder = copy(folders["adapter"], tmp_path / "moved")
    change_json(folder, "adapter_config.json", base_model_name_or_path="/nowhere")
    with_right_hashes(folder)
    code, said = verified(capsys, folder)
    assert code == 2 and "--base" in said
    code, said = verified(capsys, folder, "--base", lab / "base")
    assert code == 0, said


def test_a_merge_proven_by_its_tensors_says_what_is_not_checked(lab, tmp_path, capsys):
    run = run_of(lab, "plain", "sft")
    assert main(["merge", str(run), "--out", str(tmp_path / "out"), "--proof", "tensors"]) == 0
    code, said = verified(capsys, tmp_path / "out")
    assert code == 0 and "not compared" in said

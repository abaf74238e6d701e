"""`finetune export`: folders for llama.cpp, Ollama and vLLM, proven; and what cannot be exported is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil

import gguf
import pytest
import torch
from release_lab import manifest_of, run_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.cli.main import main
from finetune.durable import describe_files
from finetune.release import to_gguf
from finetune.release.to_gguf import LLAMA_CPP_TYPES, OWN_TYPES

HAS_LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.skipif(
    not HAS_LLAMA_CPP, reason="needs llama-cpp-python (pip install finetune[llama-cpp])"
)


def run(capsys, *args):
    capsys.readouterr()
    code = main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.fixture(scope="module")
def merged(lab, tmp_path_factory):
    """The merged sft run, and the merged reward run."""
    place = tmp_path_factory.mktemp("merged")
    for stage in ("sft", "reward"):
        assert main(["merge", str(run_of(lab, "quantised", stage)), "--out", str(place / stage)]) == 0
    return place


def test_a_gguf_folder(merged, tmp_path, capsys):
    code, said = run(capsys, "export", merged / "sft", "--to", "gguf", "--type", "f32", "--out", tmp_path / "out")
    assert code == 0 and "proof: " in said and "off by at most 0)" in said, said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "manifest.json",
        "quantised-sft-f32.gguf",
    ]
    manifest = manifest_of(tmp_path / "out")
    assert manifest["kind"] == "gguf" and manifest["export"] == {"type": "f32", "file": "quantised-sft-f32.gguf"}
    assert manifest["made_from"] == [manifest_of(merged / "sft")]
    assert (manifest["proof"]["llama_cpp"] is None) == (not HAS_LLAMA_CPP)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="quantised-sft-f32.gguf", dtype=torch.float32
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(ids).logits,
            AutoModelForCausalLM.from_pretrained(merged / "sft").eval()(ids).logits,
            rtol=1e-4,
            atol=1e-4,
        )
    code, said = run(capsys, "verify", tmp_path / "out")
    assert code == 0 and "tensors, all finite" in said
    path = tmp_path / "out" / "quantised-sft-f32.gguf"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    code, said = run(capsys, "verify", tmp_path / "out")
    assert code == 1 and "sha256" in said


def test_the_default_type_is_q8_0(merged, tmp_path, capsys):
    assert run(capsys, "export", merged / "sft", "--to", "gguf", "--out", tmp_path / "out")[0] == 0
    (path,) = (tmp_path / "out").glob("*-q8_0.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_an_ollama_folder(merged, tmp_path, capsys):
    code, said = run(capsys, "export", merged / "sft", "--to", "ollama", "--type", "f16", "--out", tmp_path / "out")
    assert code == 0 and "ollama create quantised" in said
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert (
        text.startswith("FROM ./quantised-sft-f16.gguf\n") and (tmp_path / "out" / "quantised-sft-f16.gguf").is_file()
    )
    assert 'PARAMETER stop "<|eot_id|>"' in text and "the base's licence" in text
    assert "Modelfile" in manifest_of(tmp_path / "out")["files"]


def test_an_adapter_for_vllm(lab, tmp_path, capsys):
    source = run_of(lab, "quantised", "sft")
    code, said = run(capsys, "export", source, "--to", "vllm", "--out", tmp_path / "out")
    assert (
        code == 0 and "--max-lora-rank 8" in said and "--enable-lora" in said and "--quantization bitsandbytes" in said
    )
    manifest = manifest_of(tmp_path / "out")
    assert manifest["export"]["command"] in said and manifest["proof"]["rank"] == 4
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(lab / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert run(capsys, "verify", tmp_path / "out")[0] == 0


def test_a_merged_model_for_vllm(merged, tmp_path, capsys):
    code, said = run(capsys, "export", merged / "sft", "--to", "vllm", "--out", tmp_path / "out")
    assert code == 0 and "vllm serve ." in said
    theirs = describe_files(merged / "sft", leave_out=["manifest.json"])
    assert describe_files(tmp_path / "out", leave_out=["manifest.json"]) == theirs
    assert run(capsys, "verify", tmp_path / "out")[0] == 0


def test_a_merged_reward_model_for_vllm(merged, tmp_path, capsys):
    assert run(capsys, "export", merged / "reward", "--to", "vllm", "--out", tmp_path / "out")[0] == 0
    code, said = run(capsys, "verify", tmp_path / "out")
    assert code == 0 and "score: loaded again" in said, said


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    manifest = manifest_of(folder)
    manifest["files"] = describe_files(folder, leave_out=["manifest.json"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_cannot_be_exported(lab, merged, tmp_path, capsys):
    sft, reward = run_of(lab, "quantised", "sft"), run_of(lab, "quantised", "reward")
    out = tmp_path / "out"
    for source, options, words in (
        (sft, ["--to", "gguf"], "merge it first"),
        (merged / "reward", ["--to", "gguf"], "reward model"),
        (reward, ["--to", "vllm"], "reward adapter"),
        (merged / "sft", ["--to", "gguf", "--type", "q9"], "there are f32"),
        (merged / "sft", ["--to", "vllm", "--type", "f16"], "--type is for"),
        (merged / "reward", ["--to", "awq"], "reward model"),
        (sft, ["--to", "gptq"], "merge it first"),
        (merged / "sft", ["--to", "gguf", "--prompts", "rows.jsonl"], "--prompts is for awq"),
        (lab / "base", ["--to", "gguf"], "no manifest.json"),
    ):
        code, said = run(capsys, "export", source, *options, "--out", out)
        assert code == 2 and words in said, said
        assert list(tmp_path.iterdir()) == []
    broken = tmp_path / "broken"
    shutil.copytree(sft, broken)
    change_config(broken, modules_to_save=["lm_head"], use_dora=True)
    code, said = run(capsys, "export", broken, "--to", "vllm", "--out", out)
    assert code == 2 and "use_dora" in said


def test_a_dora_adapter_and_whole_modules_are_not_for_vllm(lab, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    def magnitudes(weights):
        layers = [name.partition(".lora_A")[0] for name in weights if ".lora_A" in name]
        return {f"{layer}.lora_magnitude_vector": torch.ones(1) for layer in layers}

    source = run_of(lab, "quantised", "sft")
    for name, change, words in (
        ("dora", magnitudes, "DoRA"),
        ("whole", lambda w: {"base_model.model.lm_head.weight": torch.zeros(512, 64)}, "lm_head"),
    ):  # fmt: skip
        folder = tmp_path / name
        shutil.copytree(source, folder)
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({**weights, **change(weights)}, folder / "adapter_model.safetensors")
        change_config(folder, use_dora=name == "dora")
        code, said = run(capsys, "export", folder, "--to", "vllm", "--out", tmp_path / "out")
        assert code == 2 and words in said and "merge it" in said, said


def test_a_wrong_file_is_refused_and_nothing_is_left(merged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(to_gguf, "to_pairs", lambda weight, heads: weight[::-1].copy())
    from finetune.release import export as module

    write = module.write_gguf

    def write_wrongly(folder, path, kind, manifest):
        write(folder, path, kind, manifest)
        monkeypatch.undo()  # what is checked against is right again

    monkeypatch.setattr(module, "write_gguf", write_wrongly)
    code, said = run(capsys, "export", merged / "sft", "--to", "gguf", "--type", "f32", "--out", tmp_path / "out")
    assert code == 1 and "attn_" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(HAS_LLAMA_CPP, reason="llama-cpp-python is installed here")
def test_without_llama_cpp_its_types_say_what_is_needed(merged, tmp_path, capsys):
    code, said = run(capsys, "export", merged / "sft", "--to", "gguf", "--type", "q4_k_m", "--out", tmp_path / "out")
    assert code == 2 and "llama-cpp-python" in said and "q8_0" in said
    assert list(tmp_path.iterdir()) == []


def test_types():
    assert not set(OWN_TYPES) & set(LLAMA_CPP_TYPES)


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory):
    """Real weights, trained for a few steps and merged."""
    import yaml
    from stage_recipes import sft_stage, train, write_jsonl

    from finetune.cli.walk import walk

    folder = tmp_path_factory.mktemp("stories")
    rows = [{"text": f"Tom had a red ball. He lost it. It was day {i}."} for i in range(16)]
    write_jsonl(folder / "stories.jsonl", rows)
    recipe = {
        "name": "stories",
        "model": {
            "base": str(shared / "models" / "stories260K"),
            "load_in": "fp32",
            "max_length": 128,
            "template": "plain",
        },
        "adapter": {"rank": 8, "alpha": 16},
        "stages": {"sft": sft_stage(data=[{"path": "stories.jsonl"}], train=train(max_steps=8, learning_rate=0.002))},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    walk(folder / "recipe.yaml", (), folder / "runs", kinds=None)
    assert main(["merge", str(run_of(folder, "stories", "sft")), "--out", str(folder / "merged")]) == 0
    return folder / "merged"


def test_real_weights(stories, tmp_path, capsys):
    code, said = run(capsys, "export", stories, "--to", "gguf", "--type", "f32", "--out", tmp_path / "out")
    assert code == 0 and "off by at most 0)" in said, said


HELD_OUT = ("Once upon a time", "Lily and Ben went to the park. They", "The dog was sad because", "One day, a big bird")


def answers_of_llama_cpp(path, prompts, count):
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=256, verbose=False, n_gpu_layers=0, type_k=0, type_v=0, n_threads=1)
    found = []
    for prompt in prompts:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
        made = []
        for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            made.append(token)
            if len(made) == count:
                break
        found.append((ids, made))
    return found


def answers_of_transformers(folder, prompts, count):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)[0]
        found.append((ids.input_ids[0].tolist(), made[ids.input_ids.shape[1] :].tolist()))
    return found


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_gives_the_ids_and_greedy_answers_of_transformers(stories, tmp_path, capsys):
    assert run(capsys, "export", stories, "--to", "gguf", "--type", "f32", "--out", tmp_path / "out")[0] == 0
    (path,) = (tmp_path / "out").glob("*.gguf")
    assert manifest_of(tmp_path / "out")["proof"]["llama_cpp"]["mean_kl"] < 1e-4
    assert answers_of_llama_cpp(path, HELD_OUT, 40) == answers_of_transformers(stories, HELD_OUT, 40)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m", "q6_k"])
def test_llama_cpp_quantises_and_answers(merged, tmp_path, capsys, kind):
    code, said = run(capsys, "export", merged / "sft", "--to", "gguf", "--type", kind, "--out", tmp_path / "out")
    assert code == 0, said
    assert manifest_of(tmp_path / "out")["proof"]["llama_cpp"]["top1"] > 0.3

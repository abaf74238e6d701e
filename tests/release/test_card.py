"""The card says what the manifests say, in a form that the hub reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from made_runs import llama, make_base, make_merged, make_rows, make_run, source, weights

from finetune.release.licences import HUB_IDS, LICENCES
from finetune.release.publish import PublishSettings, publish

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def card_of(folder: Path, tmp_path: Path, to: str = "me/Llama-3-chat", **settings: Any) -> str:
    out = tmp_path / f"card-{len(list(tmp_path.glob('card-*')))}"
    given = PublishSettings(to=to, runs=tmp_path / "runs", **settings)
    publish(folder, given, say=lambda line: None, ask=lambda question: False, dry_run=out)
    return (out / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_base(tmp_path / "own", readme="license: mit")


@pytest.fixture
def on_hub(tmp_path: Path, shared: Path) -> dict[str, Any]:
    """Settings of runs whose base is a hub model; its licence files lie in a folder."""
    base = llama(tmp_path, shared, "llama3.1")
    return {"base": base, "base_name": "meta-llama/Llama-3.1-8B", "revision": COMMIT}


def test_the_hub_reads_it(tmp_path: Path, on_hub: dict[str, Any]) -> None:
    data = [source("org/set[train]", f"hub:org/set@{COMMIT}[default, train]"), source()]
    run = make_run(tmp_path / "runs", **on_hub, sources=data)
    card = ModelCard(card_of(run, tmp_path, bases=(on_hub["base"],)))
    assert card.data.to_dict() == {
        "license": "llama3.1",
        "base_model": "meta-llama/Llama-3.1-8B",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["finetune", "llama", "sft"],
        "datasets": ["org/set"],
    }
    assert card.data.license in HUB_IDS
    assert card.text.lstrip().startswith("# Llama-3-chat\n\n**Built with Llama**\n")


def test_reward_models_and_merged_ones_and_ggufs(tmp_path: Path, own: Path) -> None:
    runs = tmp_path / "runs"
    judge = make_run(runs, own, "helpful", "reward")
    assert _metadata(judge, tmp_path, library_name="peft", pipeline_tag="text-classification") == {"reward-model"}
    merged = make_merged(tmp_path / "merged", make_run(runs, own))
    assert _metadata(merged, tmp_path, library_name="transformers", base_model_relation="finetune") == {"merged", "sft"}
    two = make_merged(tmp_path / "two", make_run(runs, own, "a"), make_run(runs, own, "b"))
    assert _metadata(two, tmp_path, base_model_relation="merge") == {"merged", "sft"}
    scoring = make_merged(tmp_path / "scoring", judge)
    assert _metadata(scoring, tmp_path, pipeline_tag="text-classification") == {"merged", "reward-model"}
    gguf = make_run(runs, own, "gguf", "gguf", files={"model-q8_0.gguf": b"GGUF" + weights(), "Modelfile": b"FROM x\n"})
    assert _metadata(gguf, tmp_path, library_name="gguf", base_model_relation="quantized") == {"gguf"}
    model = make_merged(
        tmp_path / "ollama", merged, kind="ollama", files_={"x.gguf": b"GGUF", "Modelfile": b"FROM x.gguf\n"}
    )
    assert _metadata(model, tmp_path, library_name="gguf", pipeline_tag="text-generation") == {"ollama", "merged"}


def _metadata(folder: Path, tmp_path: Path, **expected: str) -> set[str]:
    data = ModelCard(card_of(folder, tmp_path, base_id="org/own")).data.to_dict()
    assert {key: data[key] for key in expected} == expected
    assert data["base_model"] == "org/own" and data["license"] == "mit"
    return set(data["tags"]) - {"finetune", "llama"}


def test_rows_have_a_data_card(tmp_path: Path, own: Path) -> None:
    rows = make_rows(tmp_path / "runs", own)
    card = DatasetCard(card_of(rows, tmp_path, "me/answers"))
    data = card.data.to_dict()
    assert data["configs"] == [{"config_name": "rows", "data_files": "rows.jsonl", "default": True}]
    assert data["task_categories"] == ["text-generation"]
    assert "synthetic" in data["tags"]
    assert 'load_dataset("me/answers", split="train")' in card.text


def test_everything_in_it_stands_in_the_manifest(tmp_path: Path, on_hub: dict[str, Any]) -> None:
    data = [source("demo.jsonl"), source("more.jsonl", used=12)]
    run = make_run(tmp_path / "runs", **on_hub, sources=data)
    text = card_of(run, tmp_path, bases=(on_hub["base"],))
    manifest = json.loads((run / "manifest.json").read_text())
    for wanted in (
        manifest["fingerprint"],
        COMMIT,
        data[0]["digest"],
        data[1]["digest"],
        "1 x NVIDIA H200",
        "61 s",
        "2026-01-02T03:04:05+00:00",
        "torch 2.13.0, finetune 0.1.0",
        "| learning_rate | 0.0002 |",
        "| held_out | 1.25 |",
        "| last.accuracy | 0.75 |",
        "| max_abs_difference | 0 |",
        "20 rows and 900 tokens to train on",
        "`stages.sft.train.epochs=2.0`",
        "Trained on up to 4,096 tokens",
        "the base held in nf4",
    ):
        assert wanted in text, wanted
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    assert recipe == {**manifest["recipe"], "track": {"wandb": None}}


def test_what_no_manifest_holds_is_not_in_it(tmp_path: Path, own: Path) -> None:
    run = make_run(tmp_path / "runs", own, metrics={}, proof={}, data={}, resolved={}, overrides=[])
    text = card_of(run, tmp_path, "me/chat")
    for heading in ("## Results", "## Proof", "## Held-out samples"):
        assert heading not in text
    assert "The manifest names no data." in text
    assert "Built with" not in text and "Llama" not in text.replace("LlamaForCausalLM", "")


def test_how_to_load_an_adapter(tmp_path: Path, on_hub: dict[str, Any]) -> None:
    text = card_of(make_run(tmp_path / "runs", **on_hub), tmp_path, bases=(on_hub["base"],))
    assert f'AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B", revision="{COMMIT}")' in text
    assert 'PeftModel.from_pretrained(base, "me/Llama-3-chat")' in text
    command = "vllm serve meta-llama/Llama-3.1-8B --enable-lora --max-lora-rank 4 --lora-modules"
    assert f"{command} Llama-3-chat=me/Llama-3-chat" in text


def test_what_vllm_cannot_serve_is_said(tmp_path: Path, own: Path) -> None:
    config = {"base_model_name_or_path": str(own), "r": 8, "modules_to_save": ["lm_head"]}
    files = {"adapter_model.safetensors": weights(), "adapter_config.json": json.dumps(config).encode()}
    text = card_of(make_run(tmp_path / "runs", own, files=files), tmp_path)
    assert "vllm serve" not in text
    assert "vLLM cannot serve this adapter beside its base: it replaces lm_head. Merge it first." in text


def test_the_code_on_the_card_is_python(tmp_path: Path, own: Path) -> None:
    runs = tmp_path / "runs"
    judge, run, rows = make_run(runs, own, "helpful", "reward"), make_run(runs, own), make_rows(runs, own)
    folders = [run, judge, rows, make_merged(tmp_path / "m", run), make_merged(tmp_path / "n", judge)]
    for folder in folders:
        (code,) = re.findall(r"```python\n(.*?)```", card_of(folder, tmp_path), re.DOTALL)
        compile(code, "card", "exec")


def test_a_gguf_is_loaded_by_llama_cpp_and_ollama(tmp_path: Path, own: Path) -> None:
    files = {"chat-q8_0.gguf": b"GGUF" + weights(), "Modelfile": b"FROM chat-q8_0.gguf\n"}
    run = make_run(tmp_path / "runs", own, "gguf", "gguf", files=files)
    text = card_of(run, tmp_path)
    assert "llama-cli -hf me/Llama-3-chat -cnv" in text
    assert "ollama create llama-3-chat -f Modelfile" in text
    assert "`Modelfile` names `chat-q8_0.gguf`" in text


def test_the_lineage_as_a_picture(tmp_path: Path, own: Path) -> None:
    runs = tmp_path / "runs"
    sft = make_run(runs, own, sources=[source("demo.jsonl")])
    rows = make_rows(runs, own, inputs={"sft": sft}, settings={"policy": "sft"})
    settings = {"start_from": "sft", "data": [{"stage": "best"}]}
    dpo = make_run(runs, own, "dpo", "dpo", inputs={"sft": sft, "best": rows}, settings=settings)
    (picture,) = re.findall(r"```mermaid\n(.*?)```", card_of(dpo, tmp_path), re.DOTALL)
    assert [line.strip() for line in picture.splitlines()] == [
        "graph TD",
        'b0["own"]',
        'm0["chat/sft<br/>sft"]',
        "b0 --> m0",
        'd0[("demo.jsonl<br/>24 rows")] --> m0',
        'm1[("chat/best<br/>reject")]',
        'm2(["chat/dpo<br/>dpo"])',
        "m0 -->|policy| m1",
        "m0 -->|starts from it| m2",
        "m1 -->|rows| m2",
    ]


def test_results_of_a_merged_model_are_those_of_its_runs(tmp_path: Path, own: Path) -> None:
    merged = make_merged(tmp_path / "m", make_run(tmp_path / "runs", own))
    exported = make_merged(tmp_path / "x", merged, kind="gguf", files_={"x.gguf": b"GGUF"})
    for folder in (merged, exported):
        text = card_of(folder, tmp_path)
        assert "Of chat/sft, before it became this:" in text and "| held_out | 1.25 |" in text


def test_names_with_marks_do_not_break_the_picture(tmp_path: Path, own: Path) -> None:
    run = make_run(tmp_path / "runs", own, sources=[source('a "b" <c>.jsonl')])
    assert 'd0[("a #quot;b#quot; #lt;c#gt;.jsonl<br/>24 rows")]' in card_of(run, tmp_path)


def test_held_out_samples_of_the_finished_model(tmp_path: Path, own: Path) -> None:
    rows = [{"step": s, "prompt": "q.jsonl:3", "answer": f"Answer {n} of step {s}."} for s in (1, 9) for n in range(5)]
    files = {
        "adapter_model.safetensors": weights(),
        "adapter_config.json": json.dumps({"base_model_name_or_path": str(own), "r": 4}).encode(),
        "samples.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
    }
    run = make_run(tmp_path / "runs", own, "ppo", "ppo", files=files)
    text = card_of(run, tmp_path)
    assert [f"Answer {n} of step 9." in text for n in range(5)] == [True, True, True, False, False]
    assert "of step 1." not in text
    assert "## Held-out samples" not in card_of(run, tmp_path, samples=0)


def test_pictures_are_shown(tmp_path: Path, own: Path) -> None:
    run = make_run(tmp_path / "runs", own, "helpful", "reward")
    files = {p.name: p.read_bytes() for p in run.iterdir() if p.name != "manifest.json"}
    with_picture = make_run(tmp_path / "more", own, "helpful", "reward", files={**files, "scores.svg": b"<svg/>"})
    assert "![scores](scores.svg)" in card_of(with_picture, tmp_path)


@pytest.mark.parametrize("id", [id for id in LICENCES if id != "llama1"])
def test_the_card_tells_every_duty(tmp_path: Path, shared: Path, id: str) -> None:
    base = llama(tmp_path, shared, id)
    architecture = ["Llama4ForConditionalGeneration" if id == "llama4" else "LlamaForCausalLM"]
    run = make_run(tmp_path / "runs", base, generation="llama2" if id == "llama2" else "llama3.1")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["architecture"] = architecture
    (run / "manifest.json").write_text(json.dumps(manifest))
    text, licence = card_of(run, tmp_path), LICENCES[id]
    assert f"Notice: {licence.notice}" in text
    assert f"]({licence.policy})" in text
    assert f"700 million monthly active users in the calendar month before {licence.model} was released" in text
    assert licence.released is not None and licence.released in text
    assert (f"**{licence.built_with}**" in text) == (licence.built_with is not None)
    assert ("may not be used to improve" in text) == (id in ("llama2", "llama3"))
    assert ("European Union" in text) == (id == "llama4")
    assert "[LICENSE](LICENSE)" in text


def test_who_wrote_the_rows_is_told(tmp_path: Path, shared: Path) -> None:
    base, runs = llama(tmp_path, shared, "llama3.1"), tmp_path / "runs"
    rows = make_rows(runs, base)
    run = make_run(runs, base, "sft2", inputs={"best": rows}, settings={"data": [{"stage": "best"}]})
    text = card_of(run, tmp_path)
    assert "Rows of chat/best were written by base-llama3.1 (llama3.1)." in text
    assert "Part of the data was written by a model" in text


def test_an_adapter_that_came_from_elsewhere_is_told(tmp_path: Path, own: Path) -> None:
    run = make_run(tmp_path / "runs", own, settings={"start_from": "../old/adapter"})
    assert "chat/sft: starts from an adapter of which no manifest is known." in card_of(run, tmp_path)

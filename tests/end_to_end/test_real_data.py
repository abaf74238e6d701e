"""Real weights and real data: the command trains, held-out loss falls, and plain peft gives the same logits.

What the run recorded of its trained model (the `proof` in its manifest) is compared with the adapter as every user of
transformers and peft would load it, in its ordinary forward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Run

from finetune.shapes import Dialog, Message

STEPS, RATE = 4, 0.01
"""For 4 steps on a model of 260,000 parameters; at the automatic rate they would hardly show."""


@dataclass(frozen=True)
class Real:
    """A data file, and what to change in the recipe below for it. rows: of the 200 taken, at least so many are used."""

    file: str
    rows: int
    model: Mapping[str, Any]
    stage: Mapping[str, Any]
    rate: float = RATE


FILES = {
    # The base was made of these stories: what is left to learn is learnt at a small rate.
    "tinystories": Real("tinystories.jsonl", 130, {}, {}, rate=1e-3),
    "alpaca": Real("alpaca_en.json", 100, {"template": "alpaca"}, {}),
    "dolly": Real("dolly.json", 120, {}, {}),
    "sharegpt": Real("sharegpt_dummy.json", 180, {"template": "vicuna"}, {}),
    # Function descriptions are long for a vocabulary of 512 words: few of these rows have 512 tokens or less.
    "glaive": Real("glaive_toolcall.json", 60, {}, {"too_long": "truncate"}),
}
BOTH = [(name, load_in) for name in FILES for load_in in ("fp32", "nf4")]
OWN_PROCESS = ("tinystories", "nf4")
"""This one runs as a user would start it; the others in this process, which saves the imports."""


@dataclass(frozen=True)
class Finished:
    folder: Path
    manifest: Mapping[str, Any]
    recipe: Path


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def finished(
    shared: Path, weights: Path, in_process_of_its_own: Run, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[tuple[str, str], Finished]:
    """Every run, by (data, load_in)."""
    from finetune.cli.main import main

    done = {}
    for name, load_in in BOTH:
        real, place = FILES[name], tmp_path_factory.mktemp(f"{name}-{load_in}")
        recipe = {
            "name": name,
            "model": {"base": str(weights), "load_in": load_in, "max_length": 512, **real.model},
            "adapter": {"rank": 8, "alpha": 16},
            "stages": {
                "sft": {
                    "kind": "sft",
                    "data": [{"path": str(shared / "data" / real.file), "take": 200}],
                    "held_out": {"fraction": 0.1, "max_rows": 20},
                    "train": {"max_steps": STEPS, "batch_size": 6, "learning_rate": real.rate, "eval_every": 100},
                    **real.stage,
                }
            },
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        if (name, load_in) == OWN_PROCESS:
            ended = in_process_of_its_own("sft", "recipe.yaml", cwd=place)
            assert ended.code == 0, ended.err
        else:
            assert main(["sft", str(place / "recipe.yaml"), "--runs", str(place / "runs")]) == 0
        [folder] = (place / "runs" / name).iterdir()
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        done[name, load_in] = Finished(folder, manifest, place / "recipe.yaml")
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("name", "load_in"), BOTH)
def test_held_out_loss_falls(
    name: str, load_in: str, finished: Mapping[tuple[str, str], Finished], finetune: Run
) -> None:
    run = finished[name, load_in]
    [stage] = json.loads(finetune("show", run.recipe, "--runs", run.recipe.parent / "runs", "--json").out)
    assert (stage["name"], stage["kind"], stage["state"]) == ("sft", "sft", "done")
    assert Path(stage["path"]).resolve() == run.folder.resolve()
    metrics = stage["metrics"]
    assert metrics["steps"] == STEPS
    assert metrics["held_out"] < metrics["first_held_out"] - 0.01
    assert 0 < metrics["units"] <= metrics["tokens"]
    data = run.manifest["data"]
    assert data["train_rows"] + data["held_out_rows"] >= FILES[name].rows
    assert data["lengths"]["longest"] <= 512
    lost = sum(dropped["rows"] for dropped in data["dropped"].values())
    assert data["train_rows"] + data["held_out_rows"] + lost == data["rows"] == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_four_bits_are_four_bits(name: str, finished: Mapping[tuple[str, str], Finished]) -> None:
    """The loss before training is the base's own: that of 4 bits lies near that of 32, and is not the same."""
    first = {kind: finished[name, kind].manifest["metrics"]["first_held_out"] for kind in ("fp32", "nf4")}
    assert first["fp32"] != first["nf4"]
    assert math.isclose(first["fp32"], first["nf4"], rel_tol=0.1)


# In plain peft


@pytest.fixture(scope="module")
def plain_bases(weights: Path) -> Mapping[str, Any]:
    """The base as any user of transformers loads it; in 4 bits with the flag that CPUs need (reference/stack_notes)."""
    import bitsandbytes
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    bases = {
        "fp32": AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32),
        "nf4": AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32, quantization_config=quantised),
    }
    for module in bases["nf4"].modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return bases


@pytest.fixture
def plain_base(plain_bases: Mapping[str, Any], load_in: str) -> Iterator[Any]:
    yield plain_bases[load_in].eval()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "load_in"), BOTH)
def test_the_adapter_in_plain_peft(
    name: str, load_in: str, finished: Mapping[tuple[str, str], Finished], plain_base: Any
) -> None:
    """Logits as the run recorded them, by the ordinary forward, alone and in a padded batch."""
    import torch
    from peft import PeftModel

    run = finished[name, load_in]
    proof = run.manifest["proof"]
    ids = torch.tensor([proof["last_row_ids"]])
    length = ids.shape[1]
    with torch.no_grad():
        untrained = plain_base(input_ids=ids).logits[0, -1]
        model = PeftModel.from_pretrained(plain_base, run.folder).eval()
        alone = model(input_ids=ids).logits[0, -1]
        # Two rows: a longer one, and this one with its padding on the right.
        batch = torch.zeros(2, length + 7, dtype=torch.long)
        batch[0], batch[1, :length] = 5, ids[0]
        mask = torch.ones_like(batch)
        mask[1, length:] = 0
        padded = model(input_ids=batch, attention_mask=mask).logits[1, length - 1]
    model.unload()

    recorded = torch.tensor(proof["last_row_top_logits"])
    for logits in (alone, padded):
        top = logits.topk(len(recorded))
        assert top.indices.tolist() == proof["last_row_top_ids"]
        torch.testing.assert_close(top.values, recorded, rtol=1e-5, atol=1e-5)
    assert (alone - untrained).abs().max() > 0.1, "an adapter that changes nothing would prove nothing"
    assert proof["max_abs_difference"] == 0


# In plain transformers: the tokenizer and its template

DIALOGS = {
    "a question": Dialog((Message("user", "Who are you?"), Message("assistant", "I am a llama."))),
    "with a system prompt": Dialog(
        (
            Message("system", "Answer in one word."),
            Message("user", "What do llamas eat?\n\nThink first."),
            Message("assistant", "Grass"),
        )
    ),
    "several turns, spaces and letters the vocabulary lacks": Dialog(
        (
            Message("user", "Hi"),
            Message("assistant", "Hello, Zoë 🦙!"),
            Message("user", "Tell  me\ta story."),
            Message("assistant", "Once upon a time\nthere was a girl."),
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dialog", DIALOGS.values(), ids=DIALOGS)
@pytest.mark.parametrize("name", ["dolly", "sharegpt", "alpaca"])
def test_the_saved_template_gives_the_ids_of_training(
    name: str, dialog: Dialog, finished: Mapping[tuple[str, str], Finished], weights: Path
) -> None:
    """Templates llama2, vicuna and alpaca. A prompt without its answer is where a generation begins."""
    from transformers import AutoTokenizer

    from finetune.data.encode import encode
    from finetune.data.tokenizer import Tokenizer
    from finetune.families.detect import resolve

    run = finished[name, "fp32"]
    ours = Tokenizer.load(weights)
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    family = resolve(config, ours.special_tokens, run.manifest["family"]["template"]).family
    [encoded] = encode([dialog], family, ours)
    plain = AutoTokenizer.from_pretrained(run.folder)
    messages = [{"role": message.role, "content": message.content} for message in dialog.messages]

    assert plain.apply_chat_template(messages)["input_ids"] == encoded.input_ids

    prompt = plain.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert prompt == encoded.input_ids[: len(prompt)]
    assert not any(encoded.trained[len(prompt) - 1 : len(prompt)]) and encoded.trained[len(prompt)] == 1
    assert encoded.input_ids[-1] == plain.eos_token_id
    assert plain.pad_token_id not in (None, plain.eos_token_id)


@pytest.mark.slow
def test_a_finished_folder(finished: Mapping[tuple[str, str], Finished]) -> None:
    """It has what a user of peft needs, no checkpoint, and nothing that the manifest does not vouch for."""
    for run in finished.values():
        names = {path.name for path in run.folder.rglob("*")}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "metrics.jsonl"} <= names
        assert "work" not in names and "README.md" not in names
        assert set(run.manifest["files"]) == names - {"manifest.json"}

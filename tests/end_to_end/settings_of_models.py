"""What settings of the recipe, its model and its adapter change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping

from settings_lab import A, Lab, M, Seen, other_bits, refused


def name(lab: Lab) -> None:
    seen = lab.run({"name": "another"})
    assert seen.folder is not None and seen.folder.parent.name == "another"


def base(lab: Lab) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = lab.root / "other-base"
    shutil.copytree(lab.base, folder)
    torch.manual_seed(9)
    LlamaForCausalLM(LlamaConfig.from_pretrained(lab.base)).save_pretrained(folder)
    other_bits(lab, M + "base", str(folder))


def revision(lab: Lab) -> None:
    refused(lab, {M + "revision": "main"}, "model.revision", "a revision belongs to a hub base")


def load_in(lab: Lab) -> None:
    first = {kind: lab.run({M + "load_in": kind}).manifest["metrics"]["first_held_out"] for kind in ("nf4", "int8")}
    first["fp32"] = lab.run().manifest["metrics"]["first_held_out"]
    first["bf16"] = lab.run({M + "load_in": "bf16"}).manifest["metrics"]["first_held_out"]
    assert len(set(first.values())) == 4


def compute(lab: Lab) -> None:
    seen = other_bits(lab, M + "compute", "bf16")
    assert seen.manifest["resolved"]["compute"] == "bfloat16"


def template(lab: Lab) -> None:
    seen = other_bits(lab, M + "template", "alpaca")
    assert seen.folder is not None and "### Instruction" in (seen.folder / "chat_template.jinja").read_text()


def system(lab: Lab) -> None:
    changes = {M + "system": "Be brief.", M + "max_length": 128}
    assert lab.run(changes).manifest["data"]["tokens"] > lab.run().manifest["data"]["tokens"]


def max_length(lab: Lab) -> None:
    data = lab.run({M + "max_length": 32}).manifest["data"]
    assert data["dropped"]["longer than max_length"]["rows"] > 0 and data["lengths"]["longest"] == 32


def device(lab: Lab) -> None:
    import torch

    assert lab.run({M + "device": "cpu"}).manifest["resolved"]["device"] == "cpu"
    if torch.cuda.is_available():
        assert lab.run({M + "device": "cuda"}).manifest["resolved"]["device"] == "cuda"
    else:
        refused(lab, {M + "device": "cuda"}, "model.device is cuda")


def rank(lab: Lab) -> None:
    def count(seen: Seen) -> int:
        return int(seen.manifest["resolved"]["trainable_parameters"])

    assert count(lab.run({A + "rank": 8})) == 2 * count(lab.run())


def alpha(lab: Lab) -> None:
    assert other_bits(lab, A + "alpha", 16).peft["lora_alpha"] == 16


def dropout(lab: Lab) -> None:
    assert other_bits(lab, A + "dropout", 0.5).peft["lora_dropout"] == 0.5


def targets(lab: Lab) -> None:
    assert set(lab.run({A + "targets": ["q_proj", "o_proj"]}).peft["target_modules"]) == {"q_proj", "o_proj"}
    one_layer = lab.run({A + "targets": r".*\.0\..*_proj"}).manifest["resolved"]["trainable_parameters"]
    assert one_layer * 2 == lab.run().manifest["resolved"]["trainable_parameters"]


def rslora(lab: Lab) -> None:
    assert other_bits(lab, A + "rslora", True).peft["use_rslora"] is True


def dora(lab: Lab) -> None:
    assert other_bits(lab, A + "dora", True).peft["use_dora"] is True


def init(lab: Lab) -> None:
    bits = {kind: lab.run({A + "init": kind}).bits for kind in ("gaussian", "orthogonal", "pissa", "olora")}
    assert len({lab.run().bits, *bits.values()}) == 5


def modules_to_save(lab: Lab) -> None:
    from safetensors.torch import load_file

    seen = lab.run({A + "modules_to_save": ["lm_head"]})
    assert seen.folder is not None
    assert [key for key in load_file(seen.folder / "adapter_model.safetensors") if "lm_head" in key]


CHECKS: Mapping[str, Callable[[Lab], object]] = {
    "Recipe.name": name,
    "Recipe.seed": lambda lab: other_bits(lab, "seed", 18),
    "ModelSettings.base": base,
    "ModelSettings.revision": revision,
    "ModelSettings.load_in": load_in,
    "ModelSettings.compute": compute,
    "ModelSettings.template": template,
    "ModelSettings.system": system,
    "ModelSettings.max_length": max_length,
    "ModelSettings.device": device,
    "AdapterSettings.rank": rank,
    "AdapterSettings.alpha": alpha,
    "AdapterSettings.dropout": dropout,
    "AdapterSettings.targets": targets,
    "AdapterSettings.rslora": rslora,
    "AdapterSettings.dora": dora,
    "AdapterSettings.init": init,
    "AdapterSettings.modules_to_save": modules_to_save,
}

"""The base: a LLaMA checkpoint loaded once, frozen, in nf4, int8, bf16 or fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from finetune.errors import BaseModelError
from finetune.model import ragged

LoadIn = Literal["nf4", "int8", "bf16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """`load_in`: how weights are held. `compute`: dtype of the matrix products and of what is not quantised."""

    load_in: LoadIn
    compute: torch.dtype


def choose_device(wanted: str) -> torch.device:
    """auto, cpu or cuda → a device. Raises BaseModelError where cuda is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BaseModelError("model.device is cuda, but torch sees no GPU here: use auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(load_in: LoadIn, compute: str, device: torch.device) -> Precision:
    """Resolve `compute: auto`: bf16 on a GPU that has it and wherever the weights are bf16, else fp32."""
    if load_in == "bf16" or compute == "bf16":
        dtype = torch.bfloat16
    elif compute == "fp32" or load_in == "fp32":
        dtype = torch.float32
    else:
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if on_gpu else torch.float32
    return Precision(load_in, dtype)


def load_base(folder: Path, precision: Precision, device: torch.device) -> LlamaForCausalLM:
    """Load and freeze a base from a local folder; safetensors only, no remote code.

    What quantisation leaves alone (embeddings, norms, head) is held in the compute dtype, and so are all weights of an
    fp32 base unless compute is bf16 by autocast: fp32 weights stay fp32. Raises BaseModelError for a broken checkpoint.
    """
    quantisation = None
    if precision.load_in == "nf4":
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.compute,
        )
    elif precision.load_in == "int8":
        quantisation = BitsAndBytesConfig(load_in_8bit=True)
    transformers_logging.disable_progress_bar()
    try:
        model, report = LlamaForCausalLM.from_pretrained(
            folder,
            quantization_config=quantisation,
            dtype=torch.float32 if precision.load_in == "fp32" else precision.compute,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name and shape
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, StrictDataclassError) as error:
        # A truncated or mislabelled checkpoint surfaces as one of these, with a message that names the tensor or file.
        raise BaseModelError(f"the base in {folder} could not be loaded: {error}") from error
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise BaseModelError(
            f"the base in {folder} does not fit its config.json: {name} has the shape {list(found)}, the config wants "
            f"{list(expected)} ({len(mismatched)} weights in all). Take both from the same checkpoint"
        )
    # Checkpoints of older versions carry rotary frequencies, which are computed from the config today.
    if unexpected := sorted(key for key in report["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq")):
        raise BaseModelError(
            f"the base in {folder} has {len(unexpected)} weights that its config.json knows nothing of, such as "
            f"{unexpected[0]}: they would be left out. Take both from the same checkpoint"
        )
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"the base in {folder} lacks {len(missing)} weights, such as {missing[0]}: they would be random. Is the "
            "checkpoint complete?"
        )
    keep_bitsandbytes_exact(model)
    model.requires_grad_(False)
    model.eval()
    ragged.install(model)
    return model


def keep_bitsandbytes_exact(model: nn.Module) -> None:
    """Keep bitsandbytes (0.50.2) from computing something else on a CPU in eval mode than in training.

    4 bits: with AVX512-BF16 `Linear4bit` swaps its weight for a packed one that has no autograd and never swaps back:
    after any evaluation the LoRA gradients below are silently wrong (relative error 0.86) and merging gives garbage.
    8 bits: `Linear8bitLt` rounds its inputs to 8 bits too, in eval mode alone, so that a policy and its reference, or
    the forward that samples, differ by up to 0.1 nats a token; here it multiplies with the dequantised weight in both.
    Has to be called after every quantised load; it changes nothing on a GPU.
    """
    import bitsandbytes
    from bitsandbytes.autograd._functions import MatmulLtState

    class AsInTraining(MatmulLtState):
        is_training = property(lambda self: True, lambda self, told: None)  # the layer tells it before each product

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt) and module.weight.device.type == "cpu":
            state = AsInTraining()
            state.__dict__.update(module.state.__dict__)
            module.state = state


def describe(model: LlamaForCausalLM, precision: Precision, device: torch.device) -> str:
    """One line for the user: size in parameters and memory, and how it is held."""
    footprint = model.get_memory_footprint() / 2**20
    compute = str(precision.compute).removeprefix("torch.")
    # 4-bit tensors hold two weights a byte, so parameters are counted from the layers' shapes.
    count = sum(
        m.in_features * m.out_features
        if isinstance(m, nn.Linear)
        else sum(p.numel() for p in m.parameters(recurse=False))
        for m in model.modules()
    )
    if model.config.tie_word_embeddings:
        count -= model.config.vocab_size * model.config.hidden_size
    held = f"{count / 1e6:,.1f}M parameters in {precision.load_in}, {footprint:,.0f} MiB"
    return f"{held}, compute {compute} on {device.type}"

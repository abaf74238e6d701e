"""A merged model as one GGUF file, written with the `gguf` library tensor by tensor.

llama.cpp's architecture `llama`: its tensor names; q and k with the rows of each head in the order of its rotation
(pairs side by side, where Hugging Face has halves); Llama 3.1's scaled positions as the tensor `rope_freqs`; a tied
head left out, which llama.cpp then takes from the embedding; norms in float32. K-quants are made from that by
llama.cpp's own quantiser, where llama-cpp-python is installed. Legend: I inputs, O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from finetune.errors import InputError
from finetune.plan.base_files import read_json
from finetune.release.gguf_words import Words, read_words
from finetune.release.tensors import Place, checkpoint_files, read_places

Q = gguf.GGMLQuantizationType
OWN_TYPES: Mapping[str, tuple[Any, Any]] = {
    "f32": (Q.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Q.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Q.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Q.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""What the gguf library writes exactly as llama.cpp would."""
LLAMA_CPP_TYPES = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m",
    "q6_k",
)  # fmt: skip
_COMPUTED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its GGUF name, where it lies in the checkpoint, and its type.

    heads: of q and k, whose rows are put into llama.cpp's order; 0 for others.
    """

    name: str
    place: Place
    kind: Any
    heads: int

    def values(self) -> NDArray[np.float32]:
        """[O, I] or [I] in llama.cpp's order, float32."""
        found = self.place.read().float().numpy()
        return to_pairs(found, self.heads) if self.heads else found


def to_pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """[O, …]: rows of each head from halves (Hugging Face's rotation) to pairs (llama.cpp's)."""
    size = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, size, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def to_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The way back."""
    size = weight.shape[0] // heads // 2
    return weight.reshape(heads, size, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def plan_tensors(folder: Path, config: Mapping[str, Any], kind: str) -> list[Tensor]:
    """Every tensor of the file, in the checkpoint's order. Raises InputError for what llama.cpp has no place for."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config["num_hidden_layers"]))
    planned = []
    for file in checkpoint_files(folder):
        for name, place in read_places(file).items():
            if name.endswith(_COMPUTED):
                continue
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise InputError(f"{folder}: {name} is no tensor of a LLaMA text model: llama.cpp has no place for it")
            heads = 0
            if ".q_proj." in name:
                heads = int(config["num_attention_heads"])
            elif ".k_proj." in name:
                heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
            planned.append(Tensor(found, place, _tensor_type(place, kind), heads))
    return planned


def _tensor_type(place: Place, kind: str) -> Any:
    wanted = OWN_TYPES[kind][0]
    if len(place.shape) < 2:
        return Q.F32
    block = gguf.GGML_QUANT_SIZES[wanted][0]
    return wanted if place.shape[-1] % block == 0 else Q.F16  # as llama.cpp's own converter


def rope_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """[head size / 2]: what llama.cpp divides each rotary frequency by; None where positions are not Llama 3.1's."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size, theta = _head_size(config), float(rope["rope_theta"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    found = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * theta ** (i / size)
        if wavelength < length / high:
            found.append(1.0)
        elif wavelength > length / low:
            found.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def write_gguf(folder: Path, path: Path, kind: str, manifest: Mapping[str, Any]) -> None:
    """Write the merged model in `folder` as `path`, of one of OWN_TYPES. Raises InputError."""
    config = read_json(folder / "config.json") or {}
    words = read_words(folder, int(config["vocab_size"]))
    tensors = plan_tensors(folder, config, kind)
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_settings(writer, config, manifest, OWN_TYPES[kind][1])
    _write_words(writer, words, folder)
    if (factors := rope_factors(config)) is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
        nbytes = math.prod(tensor.place.shape) // block * size
        writer.add_tensor_info(tensor.name, tensor.place.shape, np.dtype(np.float32), nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for tensor in tensors:
        writer.write_tensor_data(gguf.quants.quantize(tensor.values(), tensor.kind))
    writer.close()


def quantise_with_llama_cpp(source: Path, path: Path, kind: str) -> None:
    """A GGUF file of one of LLAMA_CPP_TYPES from one in f32, f16 or bf16. Raises InputError."""
    llama_cpp = llama_cpp_library(kind)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if code := llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params):
        raise InputError(f"llama.cpp could not make {kind} of {source.name} (code {code}): see its messages above")


def llama_cpp_library(kind: str) -> Any:
    """llama-cpp-python, for its quantiser. Raises InputError where it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise InputError(
            f"--type {kind} is made by llama.cpp's own quantiser, which comes with llama-cpp-python (not installed: "
            f"pip install llama-cpp-python). Without it there are {', '.join(OWN_TYPES)}"
        ) from error
    return llama_cpp


def source_type(folder: Path) -> str:
    """The type that holds a checkpoint's values as they are."""
    dtypes = {place.dtype for file in checkpoint_files(folder) for place in read_places(file).values()}
    exact = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    return exact.get(dtypes.pop(), "f32") if len(dtypes) == 1 else "f32"


def _write_settings(writer: Any, config: Mapping[str, Any], manifest: Mapping[str, Any], file_type: Any) -> None:
    heads = int(config["num_attention_heads"])
    rope = _rope(config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(str(manifest["name"]))
    writer.add_license(str(manifest["family"]["licence"]))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, Path(str(manifest["base"]["name"])).name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] not in ("default", "llama3"):
        raise InputError(f"positions scaled by {rope['rope_type']!r} are not written to GGUF here")


def _write_words(writer: Any, words: Words, folder: Path) -> None:
    settings = read_json(folder / "tokenizer_config.json") or {}
    writer.add_tokenizer_model(words.kind)
    writer.add_tokenizer_pre("llama-bpe" if words.kind == "gpt2" else "default")
    writer.add_token_list(words.pieces)
    if words.kind == "gpt2":
        writer.add_token_merges(words.merges)
    else:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(True)
    writer.add_token_types(words.types)
    for key, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        if (name := settings.get(key)) is not None:
            add(words.ids[name])
    for token, add in (("<|eot_id|>", writer.add_eot_token_id), ("<|eom_id|>", writer.add_eom_token_id)):
        if token in words.special:
            add(words.special[token])
    writer.add_add_bos_token(words.adds_bos)
    if (folder / "chat_template.jinja").is_file():
        writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Position settings in transformers 5's form, whichever version wrote the config."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope

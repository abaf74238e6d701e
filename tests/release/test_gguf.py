"""GGUF files: read back by the gguf library, by transformers' own reader, and, where it is installed, by llama.cpp."""

from __future__ import annotations

import json
import math
import shutil

import gguf
import numpy as np
import pytest
import torch
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError, ProofError
from finetune.families.detect import FAMILIES
from finetune.release.gguf_check import PROBES, check_gguf_file, prove_gguf
from finetune.release.gguf_words import encode_like_llama_cpp, read_words
from finetune.release.to_gguf import plan_tensors, rope_factors, source_type, to_halves, to_pairs, write_gguf

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MANIFEST = {"name": "tiny/sft", "family": {"licence": "llama3.1"}, "base": {"name": "org/tiny-base"}}
IDS = torch.arange(3, 60)[None]


def checkpoint(folder, words="llama3", dtype=torch.float32, **changes):
    """A tiny merged folder: model, tokenizer, template."""
    (tiny_llama3_tokenizer if words == "llama3" else tiny_spm_tokenizer)(folder)
    torch.manual_seed(1)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 576,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits.float()


CASES = {
    "llama3": {},
    "sentencepiece": {"words": "spm"},
    "tied": {"tie_word_embeddings": True},
    "scaled positions": {"rope_parameters": LLAMA3_ROPE},
    "wide heads": {"head_dim": 32},
    "linear positions": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "bf16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_holds_the_model(tmp_path, case):
    folder = checkpoint(tmp_path / "merged", **CASES[case])
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, "f32", MANIFEST)
    proof = prove_gguf(folder, path, "f32")
    assert proof["largest_relative"] == 0 and proof["texts"] == len(PROBES)
    reader = gguf.GGUFReader(path)
    names = {tensor.name for tensor in reader.tensors}
    assert ("output.weight" in names) == (case != "tied")
    assert ("rope_freqs.weight" in names) == (case == "scaled positions")
    config = json.loads((folder / "config.json").read_text())
    field = {name: value.contents() for name, value in reader.fields.items()}
    assert field["general.architecture"] == "llama"
    assert field["llama.attention.head_count_kv"] == 2
    assert field["llama.rope.dimension_count"] == config["head_dim"]
    assert field["llama.context_length"] == 256
    assert field["tokenizer.chat_template"] == "{{ bos_token }}{{ messages[0].content }}"
    assert ("llama.rope.scaling.factor" in field) == (case == "linear positions")


@pytest.mark.parametrize("case", ["llama3", "sentencepiece", "tied"])
def test_transformers_reads_the_same_model_from_the_file(tmp_path, case):
    """Its reader was written by others, from llama.cpp's side: names, order of q and k, tied heads."""
    folder = checkpoint(tmp_path / "merged", **CASES[case])
    (tmp_path / "gguf").mkdir()
    write_gguf(folder, tmp_path / "gguf" / "model.gguf", "f32", MANIFEST)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "least", "most"), [("f16", 1e-5, 1e-3), ("bf16", 1e-4, 4e-3), ("q8_0", 1e-3, 0.01)])
def test_smaller_types(tmp_path, kind, least, most):
    folder = checkpoint(tmp_path / "merged")
    write_gguf(folder, tmp_path / "model.gguf", kind, MANIFEST)
    assert least < prove_gguf(folder, tmp_path / "model.gguf", kind)["largest_relative"] <= most
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == kind.upper() and types["blk.0.attn_norm.weight"] == "F32"


def test_a_width_that_has_no_whole_blocks_is_held_in_f16(tmp_path):
    folder = checkpoint(tmp_path / "merged", intermediate_size=172)  # as stories260K
    write_gguf(folder, tmp_path / "model.gguf", "q8_0", MANIFEST)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"
    prove_gguf(folder, tmp_path / "model.gguf", "q8_0")


def test_rows_by_hand():
    """One head of four rows: halves (0 1 | 2 3) become pairs (0 2)(1 3)."""
    rows = np.arange(4.0, dtype=np.float32)[:, None]
    assert to_pairs(rows, 1)[:, 0].tolist() == [0, 2, 1, 3]
    assert to_halves(to_pairs(rows, 1), 1).tolist() == rows.tolist()
    two = np.arange(8.0, dtype=np.float32)
    assert to_pairs(two, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_scaled_positions_are_those_of_transformers():
    """inv_freq of transformers = theta^(-2i/d) / factor of ours."""
    for factor, size in ((8.0, 128), (32.0, 64)):
        rope = {**LLAMA3_ROPE, "factor": factor, "original_max_position_embeddings": 8192}
        config = LlamaConfig(head_dim=size, rope_parameters=rope, max_position_embeddings=131072)
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        theirs = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
        ours = rope_factors({"head_dim": size, "rope_parameters": rope})
        plain = torch.tensor([500000.0 ** (-i / size) for i in range(0, size, 2)])
        torch.testing.assert_close(plain / torch.from_numpy(ours), theirs, rtol=1e-5, atol=0)
        assert ours[0] == 1 and ours[-1] == factor
    old = {"head_dim": 128, "rope_theta": 5e5, "rope_scaling": {**rope, "type": "llama3"}}  # as older configs have it
    assert rope_factors(old) is not None
    assert rope_factors({"head_dim": 128, "rope_theta": 1e4}) is None


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_real_tokenizers_split_as_before(shared, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(shared / "tokenizers" / name, folder)
    size = 32000 if name == "llama2" else 128256
    tokenizer = Tokenizer.load(folder)
    texts = [
        *PROBES,
        "Der Kühlschrank ist kaputt.\r\n\r\n",
        "    def f(x):\n        return x ** 2\n",
        "don't we'll I'VE",
    ]
    found = [read_words(folder, size)]
    if name == "llama2":
        (folder / "tokenizer.model").unlink()  # scores from the merges alone have to do as well
        found.append(read_words(folder, size))
    for words in found:
        assert len(words.pieces) == size
        for text in texts:
            assert encode_like_llama_cpp(words, text) == tokenizer.encode_text(text), text


def test_types_and_free_ids(tmp_path):
    words = read_words(checkpoint(tmp_path / "spm", words="spm"), 600)
    tokenizer = Tokenizer.load(tmp_path / "spm")
    kinds = dict(zip(words.pieces, words.types, strict=True))
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"]) == (2, 3, 6)
    assert words.pieces[599] == "[PAD599]" and words.types[599] == 5
    assert words.adds_bos and words.special["</s>"] == 2
    with pytest.raises(InputError, match="words"):
        read_words(tmp_path / "spm", tokenizer.vocab_size - 1)


def test_tokenizers_that_llama_cpp_would_split_otherwise_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "merged")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="llama-bpe"):
        read_words(folder, 576)
    folder = checkpoint(tmp_path / "spm", words="spm")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": None}))
    with pytest.raises(InputError, match="white space"):
        read_words(folder, 576)


def test_damage_is_found(tmp_path):
    folder = checkpoint(tmp_path / "merged", rope_parameters=LLAMA3_ROPE)
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, "f32", MANIFEST)
    whole = path.read_bytes()

    def damaged(name, change):
        path.write_bytes(whole)
        reader = gguf.GGUFReader(path, "r+")
        (tensor,) = (tensor for tensor in reader.tensors if tensor.name == name)
        change(tensor.data)
        reader.data.flush()

    damaged("blk.1.attn_k.weight", lambda data: data.__setitem__(slice(None), to_halves(data.copy(), 2)))
    with pytest.raises(ProofError, match=r"blk.1.attn_k.weight"):
        prove_gguf(folder, path, "f32")
    damaged("rope_freqs.weight", lambda data: data.__setitem__(0, 2.0))
    with pytest.raises(ProofError, match="rope_freqs"):
        prove_gguf(folder, path, "f32")
    damaged("output.weight", lambda data: data.__setitem__((0, 0), math.nan))
    with pytest.raises(ProofError, match="not finite"):
        check_gguf_file(path)
    path.write_bytes(whole[:1000])
    with pytest.raises(ProofError, match="no GGUF file"):
        check_gguf_file(path)
    path.write_bytes(whole)
    assert "tensors, all finite" in check_gguf_file(path)
    (folder / "chat_template.jinja").write_text("another")
    with pytest.raises(ProofError, match="chat template"):
        prove_gguf(folder, path, "f32")


def test_other_tensors_and_positions_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = checkpoint(tmp_path / "merged")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {**weights, "model.vision.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(InputError, match=r"model.vision.weight"):
        plan_tensors(folder, json.loads((folder / "config.json").read_text()), "f32")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    folder = checkpoint(tmp_path / "yarn", rope_parameters=yarn)
    with pytest.raises(InputError, match="yarn"):
        write_gguf(folder, tmp_path / "x.gguf", "f32", MANIFEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_that_holds_a_checkpoint_as_it_is(tmp_path, dtype):
    folder = checkpoint(tmp_path / "merged", dtype=dtype)
    assert source_type(folder) == {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    write_gguf(folder, tmp_path / "model.gguf", source_type(folder), MANIFEST)
    assert prove_gguf(folder, tmp_path / "model.gguf", source_type(folder))["largest_relative"] == 0


@pytest.mark.parametrize(("words", "name"), [("llama3", "llama3.1"), ("spm", "llama2"), ("spm", "vicuna")])
def test_prompts_become_the_ids_that_were_trained(tmp_path, words, name):
    """Turns and special tokens, from the file's vocabulary."""
    family = FAMILIES[name]
    folder = checkpoint(tmp_path / "merged", words=words)
    write_gguf(folder, tmp_path / "model.gguf", "f32", MANIFEST)
    prove_gguf(folder, tmp_path / "model.gguf", "f32", family)


def test_swapped_special_tokens_are_found(tmp_path):
    folder, other = checkpoint(tmp_path / "merged"), checkpoint(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    for old, new in (("<|eot_id|>", "<|x|>"), ("<|end_header_id|>", "<|eot_id|>"), ("<|x|>", "<|end_header_id|>")):
        text = text.replace(old, new)
    (other / "tokenizer.json").write_text(text)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|end_header_id|>"}))
    write_gguf(other, tmp_path / "model.gguf", "f32", MANIFEST)
    with pytest.raises(ProofError, match="prompt"):
        prove_gguf(folder, tmp_path / "model.gguf", "f32", FAMILIES["llama3.1"])

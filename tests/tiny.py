"""Two tiny tokenizers made on the spot, so that the tests need no download: one like Llama 3's, one like Llama 2's."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "The capital of France is Paris. What is the capital of Italy? The capital of Italy is Rome.",
    "system user assistant ipython USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>> ### Instruction: ### Response:",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "A chat between a curious user and an artificial intelligence assistant gives helpful, polite answers.",
    'You can call these functions: {"name": "get_weather", "parameters": {"city": "Paris"}}',
    "Once upon a time there was a little llama. The llama lived on a hill and liked to sing in the rain.",
]
LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
# The word pattern of Llama 3's tokenizer.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def tiny_llama3_tokenizer(folder: Path) -> Path:
    """Byte-level BPE with Llama 3.1's special tokens at ids of its own; writes into `folder` and returns it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES * 4, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(list(LLAMA3_SPECIALS))
    bos = LLAMA3_SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return _write(folder, tokenizer, {"bos_token": bos, "eos_token": "<|eot_id|>", "pad_token": LLAMA3_SPECIALS[2]})


def tiny_spm_tokenizer(folder: Path) -> Path:
    """Sentencepiece-like BPE with byte fallback, `▁` for spaces, <unk>, <s>, </s>; writes into `folder`, returns it."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(LINES * 4, trainers.BpeTrainer(vocab_size=260))
    learnt = json.loads(learner.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    words += [letter for letter in "\n" if letter not in learnt["vocab"]]
    vocab = {word: index for index, word in enumerate(words)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    return _write(folder, tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def _write(folder: Path, tokenizer: Tokenizer, config: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def tiny_llama(folder: Path, *, words: int = 512) -> Path:
    """Put a LLaMA with 2 layers of width 64, GQA 4/2 and seeded random weights beside a tokenizer, into its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=words,
        max_position_embeddings=256,
        initializer_range=0.2,  # at the usual 0.02 a random LLaMA predicts the same for all words
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder

"""What the scan finds, what it leaves alone, and how it says so."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from finetune.errors import InputError
from finetune.release.scan import Here, refuse_findings, scan, without_private_paths

HERE = Here(home="/srv/people/joanna", user="joanna", host="lab-gpu-07")


def found(text: str, name: str = "notes.md") -> list[str]:
    return [finding.what for finding in scan({name: text.encode()}, here=HERE)]


# Written in two pieces, so that no key, real or not, stands in this file whole.
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token is hf" + "_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789", "a Hugging Face token"),
        ("WANDB_API_KEY=" + "0123456789abcdef0123456789abcdef01234567", "a Weights & Biases key"),
        ('{"id": "AKIA' + 'IOSFODNN7EXAMPLE"}', "an AWS key"),
        ("-----BEGIN OPENSSH PRIVATE" + " KEY-----", "a private key"),
        ("-----BEGIN PRIVATE" + " KEY-----", "a private key"),
        ("sk-" + "proj-abcdEFGH1234ijklMNOP5678", "an API key"),
        ("gh" + "p_0123456789abcdefghijABCDEFGHIJ012345", "a GitHub token"),
        ("gl" + "pat-0123456789abcdefghij", "a GitLab token"),
        ("wandb_v1" + "_0123456789abcdefghij0123456789abcdefghijABCD", "a Weights & Biases key"),
        ("xo" + "xb-0123456789-abcdefghijKL", "a Slack token"),
        ("AIz" + "a0123456789abcdefghijABCDEFGHIJ012345", "a Google API key"),
        ("ey" + "JhbGciOiJIUzI1.ey" + "JzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4", "a signed web token"),
        ("https://bob:geheim" + "99@example.org/x", "a password in an address"),
        ('"api_key": "' + 'q7Zp2Lx9Vw4Nt8Kb"', "what looks like a key"),
        ("password = " + "g7HxT92mQp4" + "LsW8b", "what looks like a key"),
        ("see /home/joe/llama/x", "a private path"),
        ("/Users/anna/models", "a private path"),
        (r"C:\Users\anna\models", "a private path"),
        ("/root/work/x.jsonl", "a private path"),
        ("in /srv/people/joanna/runs", "your home folder"),
        ("made by joanna.", "your user name"),
        ("on lab-gpu-07:", "this machine's name"),
    ],
)
def test_finds(text: str, what: str) -> None:
    assert what in found(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"bos_token": "<|begin_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast", "eos_token_id": 128001}',
        '"pad_token": "<|reserved_special_token_2|>"',
        '{"revision": "0123456789abcdef0123456789abcdef01234567"}',  # a commit is no key
        '"sha256": "768cc9609f89eb9704214b6254986521a39fdf0dbaaf3603e7f2f6dc24945df1"',
        "cd /home/user/project && ls /home/runner",
        "https://www.llama.com/llama3_3/use-policy and https://example.org/page",
        "../datasets/demo.jsonl, runs/chat/sft-0123456789ab",
        "max_new_tokens: 256, token: yes, password: correct",
        "joannas and lab-gpu-071",
        '"trained_tokens": 761',
    ],
)
def test_leaves_alone(text: str) -> None:
    assert found(text) == []


def test_names_file_and_line_and_never_the_whole_key(tmp_path: Path) -> None:
    key = "hf" + "_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
    path = tmp_path / "card.md"
    path.write_text(f"one\ntwo {key}\nthree /home/joe/data\n")
    findings = scan({"docs/card.md": path}, here=HERE)
    with pytest.raises(InputError) as error:
        refuse_findings(findings)
    message = str(error.value)
    assert "docs/card.md:2: a Hugging Face token: hf_AbC…" in message
    assert "docs/card.md:3: a private path: /home/joe" in message
    assert key not in message


def test_what_is_allowed_goes_through_and_the_rest_does_not() -> None:
    files = {"rows.jsonl": b"/home/joe\n/home/ann\n"}
    assert [f.text for f in scan(files, allowed=["/home/joe"], here=HERE)] == ["/home/ann"]


def test_a_known_key_cannot_be_allowed_and_random_text_can() -> None:
    key, text = "hf" + "_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789", "q7Zp2Lx9Vw4" + "Nt8Kb"
    files = {"a.txt": f"{key}\napi_key={text}\n".encode()}
    assert [f.line for f in scan(files, allowed=[key, text], here=HERE)] == [1]


def test_a_long_list_is_cut_and_counted() -> None:
    findings = scan({"a.txt": "\n".join(f"/home/joe{i}" for i in range(25)).encode()}, here=HERE)
    with pytest.raises(InputError, match=r"and 15 more"):
        refuse_findings(findings)


def test_headers_of_weights_are_read_and_their_numbers_are_not() -> None:
    header = json.dumps({"__metadata__": {"from": "/home/joe/x"}, "w": {"dtype": "F32", "shape": [1]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + b"/home/ann"
    assert [f.text for f in scan({"model.safetensors": weights}, here=HERE)] == ["/home/joe"]
    gguf = b"GGUF\x03\x00" + b"general.source.url\x00/home/joe/x" + b"\x00\xff"
    assert [f.text for f in scan({"model.gguf": gguf}, here=HERE)] == ["/home/joe"]


def test_a_tokenizers_words_may_be_names() -> None:
    assert found('{"joanna": 17}', "tokenizer.json") == []
    assert found('{"path": "/home/joe/x"}', "tokenizer.json") == ["a private path"]


def test_metas_tokenizers_pass(shared: Path) -> None:
    files = {f"{p.parent.name}/{p.name}": p for p in (shared / "tokenizers" / "llama3").rglob("*.json")}
    assert len(files) >= 2
    assert scan(files, here=HERE) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/joe/models/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("/data/llama/", "llama"),
        ("~/models/tiny", "tiny"),
        (r"C:\models\tiny", "tiny"),
        ("model.base=/home/joe/tiny", "model.base=tiny"),
        ("/data/x.jsonl:17, /data/y.jsonl:3", "x.jsonl:17, y.jsonl:3"),
        ("../datasets/demo.jsonl", "../datasets/demo.jsonl"),
        ("datasets/demo.jsonl", "datasets/demo.jsonl"),
        ("https://huggingface.co/org/name", "https://huggingface.co/org/name"),
        ("org/name", "org/name"),
        ("a / b", "a / b"),
        ("<|begin_of_text|>", "<|begin_of_text|>"),
    ],
)
def test_paths_are_cut_to_their_last_name(value: str, expected: str) -> None:
    assert without_private_paths({"a": [value]}) == {"a": [expected]}

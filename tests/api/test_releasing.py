"""Merge, export and publish from Python, with the caution of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_chain import Chain
from release.fake_hub import Hub, asked_instead

import finetune as ft
from finetune.errors import InputError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of one's own that huggingface_hub talks to, with the right token in the environment."""
    with asked_instead(monkeypatch, tmp_path / "no-token") as found:
        yield found


def test_merge_and_ask(chain: Chain, tmp_path: Path) -> None:
    """A merged folder is a run, too, and answers as the adapter does."""
    merged = ft.merge(chain.results["sft"], tmp_path / "merged", proof="model")
    assert merged.kind == "merged" and merged.name == "tiny/sft" and (merged.folder / "model.safetensors").is_file()
    assert "merged model" in merged._repr_html_()
    asked = "What is 3?"
    assert ft.load(merged)(asked, max_new_tokens=8) == ft.load(chain.results["sft"])(asked, max_new_tokens=8)
    side = ft.compare(chain.results["sft"], merged, [asked], max_new_tokens=8)
    assert side.same == 1 and side.names == ("sft", "tiny/sft"), "of different bases, one after the other"


def test_several_are_merged(chain: Chain, tmp_path: Path) -> None:
    both = [chain.results["sft"], chain.folder("dpo")]
    merged = ft.merge(both, tmp_path / "both", weights=(0.7, 0.3), proof="model")
    assert merged.manifest["merge"]["weights"] == [0.7, 0.3]


def test_export(chain: Chain, tmp_path: Path) -> None:
    exported = ft.export(chain.results["sft"], "vllm", tmp_path / "vllm")
    assert exported.kind == "vllm"
    with pytest.raises(InputError, match="merge it first"):
        ft.export(chain.results["sft"], "gguf", tmp_path / "gguf")


def test_nothing_is_published_unasked(
    chain: Chain, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no terminal can be asked, looking comes first, and only confirm=True uploads; private unless told."""
    run, about = chain.results["sft"], {"licence": "apache-2.0", "base_id": "me/tiny", "samples": 0, "runs": chain.runs}
    assert ft.publish(run, "me/Llama-tiny", dry_run=tmp_path / "release", **about) == []
    assert (tmp_path / "release" / "README.md").is_file() and hub.calls == []
    capsys.readouterr()
    assert ft.publish(run, "me/Llama-tiny", **about) == []
    assert "call again with confirm=True" in capsys.readouterr().out and hub.repos == {}
    assert len(ft.publish(run, "me/Llama-tiny", confirm=True, **about)) == 1
    assert hub.repos["me/Llama-tiny"].private


def test_a_terminal_is_asked(
    chain: Chain, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal:
        answers = iter(["n\n", "y\n"])

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return next(self.answers)

    monkeypatch.setattr("sys.stdin", Terminal())
    about = {"licence": "apache-2.0", "base_id": "me/tiny", "samples": 0, "runs": chain.runs}
    assert ft.publish(chain.results["sft"], "me/Llama-tiny", **about) == [] and hub.repos == {}
    assert len(ft.publish(chain.results["sft"], "me/Llama-tiny", **about)) == 1

"""Publishing to a hub of one's own: what goes up, what never does, and everything that can go wrong on the way."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub, Repo, asked_instead
from made_runs import llama, make_base, make_merged, make_rows, make_run, source, weights
from stage_recipes import Walk, dpo_stage, reward_stage, sft_stage

from finetune.cli.main import main
from finetune.errors import BaseModelError, FinetuneError, InputError
from finetune.plan.manifest import check_files, read_manifest
from finetune.release.publish import PublishSettings, publish


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running fake hub that huggingface_hub talks to, with the right token in the environment."""
    with asked_instead(monkeypatch, tmp_path / "no-token") as found:
        yield found


@dataclass
class Told:
    """The user: what was said and asked. answer: what is answered to every question."""

    answer: bool = True
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def ask(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    @property
    def text(self) -> str:
        return "\n".join(self.said)


Send = Callable[..., list[str]]


@pytest.fixture
def user() -> Told:
    return Told()


@pytest.fixture
def send(user: Told, tmp_path: Path) -> Send:
    def do(folder: Path, to: str = "me/chat", *, dry_run: Path | None = None, **settings: Any) -> list[str]:
        given = PublishSettings(to=to, runs=tmp_path / "runs", **settings)
        return publish(folder, given, say=user.said.append, ask=user.ask, dry_run=dry_run)

    return do


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base that is nobody's but ours."""
    return make_base(tmp_path / "bases" / "own", readme="license: mit")


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    return make_run(tmp_path / "runs", base)


def names(hub: Hub, repo: str = "me/chat") -> set[str]:
    return set(hub.repos[repo].files) - {".gitattributes"}


# --- what goes up ---


def test_one_private_commit_with_everything_that_belongs_to_it(hub: Hub, run: Path, send: Send, user: Told) -> None:
    commits = send(run)
    assert names(hub) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "tokenizer.json",
    }
    assert hub.repos["me/chat"].private
    assert len(hub.repos["me/chat"].messages) == len(commits) == 1
    assert user.asked == ["Upload to me/chat (private)?"]
    assert "stays here: metrics.jsonl" in user.text
    assert "the tokens of one row of your data" in user.text
    assert any("adapter_model.safetensors  new" in line for line in user.said)
    assert commits[0] in user.said[-1]


def test_public_when_told(hub: Hub, run: Path, send: Send, user: Told) -> None:
    send(run, public=True)
    assert not hub.repos["me/chat"].private
    assert user.asked == ["Upload to me/chat (everybody can see)?"]


def test_no_is_an_answer(hub: Hub, run: Path, send: Send, user: Told) -> None:
    user.answer = False
    assert send(run) == []
    assert hub.repos == {} and hub.puts == []
    assert user.said[-1] == "nothing was uploaded"


def test_the_same_again_does_nothing(hub: Hub, run: Path, send: Send, user: Told) -> None:
    send(run)
    hub.calls.clear()
    assert send(run) == []
    assert len(hub.repos["me/chat"].commits) == 2  # the hub's first, and ours
    assert not any("commit" in call or "PUT" in call or "create" in call for call in hub.calls)
    assert user.asked == ["Upload to me/chat (private)?"]  # the first time only
    assert "nothing to do" in user.said[-1]


def test_what_changed_goes_up_and_what_is_gone_goes(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": weights(str(n)) for n in (1, 2)}
    run = make_run(tmp_path / "runs", base, kind="merged", files={**shards, "config.json": b"{}"})
    send(run)
    repo = hub.repos["me/chat"]
    repo.files["mine.txt"] = b"added on the hub"
    hub.puts.clear()
    files = {"model.safetensors": weights("1"), "config.json": b"{}"}
    again = make_run(tmp_path / "again", base, kind="merged", files=files)
    send(again)
    assert names(hub) == {"README.md", "config.json", "manifest.json", "mine.txt", "model.safetensors"}
    assert hub.puts == []  # the same bytes under another name are not sent again
    assert len(repo.messages) == 2


def test_what_never_goes_up(hub: Hub, tmp_path: Path, base: Path, send: Send, user: Told) -> None:
    files = {
        "adapter_model.safetensors": weights(),
        "adapter_config.json": json.dumps({"base_model_name_or_path": str(base), "r": 4}).encode(),
        "optimizer.pt": b"\0",
        "scheduler.pt": b"\0",
        "rng_state.pth": b"\0",
        "optimizer.safetensors": weights("moments"),
        "work/checkpoints/3/adapter_model.safetensors": weights("old"),
        "wandb/run-1/files/config.yaml": b"a: 1\n",
        "metrics.jsonl": b"{}\n",
        "samples.jsonl": b'{"step": 1, "answer": "Yes."}\n',
        "train.log": b"...\n",
        ".cache/tokens.json": b"{}",
        "pytorch_model.bin": b"\0",
    }
    run = make_run(tmp_path / "runs", base, files=files)
    (run / "events.out").write_text("not even in the manifest")
    (run / "tokenizer.json").write_text("neither: nobody proved it")
    send(run)
    assert names(hub) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}


def test_private_paths_and_accounts_are_not_in_what_is_written(hub: Hub, run: Path, base: Path, send: Send) -> None:
    assert str(base) in (run / "manifest.json").read_text()
    send(run)
    for name, content in hub.repos["me/chat"].files.items():
        assert str(base.parent).encode() not in content, name
        assert b"joanna" not in content, name  # the account that metrics were sent to
    config = json.loads(hub.repos["me/chat"].files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "own"


def test_the_bases_name_on_the_hub(hub: Hub, run: Path, send: Send) -> None:
    send(run, base_id="org/own-1b")
    files = hub.repos["me/chat"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/own-1b"
    assert json.loads(files["manifest.json"])["base"]["name"] == "org/own-1b"
    assert b"base_model: org/own-1b\nbase_model_relation: adapter\n" in files["README.md"]


@pytest.mark.parametrize(
    ("text", "what"),
    [("/home/joe/llama", "a private path: /home/joe"), ("hf" + "_" + "AbC1" * 9, "a Hugging Face token: hf_AbC…")],
)
def test_nothing_goes_up_with_a_secret_in_it(
    hub: Hub, tmp_path: Path, base: Path, send: Send, text: str, what: str
) -> None:
    template = f"{{# line one #}}\n{{# {text} #}}\n"
    files = {"model.safetensors": weights(), "chat_template.jinja": template.encode()}
    with pytest.raises(InputError, match="nothing was uploaded") as error:
        send(make_run(tmp_path / "runs", base, kind="merged", files=files))
    assert f"me/chat/chat_template.jinja:2: {what}" in str(error.value)
    assert text not in str(error.value) or "/home" in text
    assert hub.calls == []


def test_a_text_that_may_be_public(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    files = {"model.safetensors": weights(), "chat_template.jinja": b"/home/joe"}
    send(make_run(tmp_path / "runs", base, kind="merged", files=files), allowed=("/home/joe",))
    assert "chat_template.jinja" in names(hub)


def test_a_damaged_file_is_not_published(hub: Hub, run: Path, send: Send) -> None:
    (run / "adapter_model.safetensors").write_bytes(weights("another"))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors has .* were written"):
        send(run)
    assert hub.calls == []


def test_the_published_manifest_proves_what_went_up(hub: Hub, run: Path, send: Send, tmp_path: Path) -> None:
    send(run)
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, content in hub.repos["me/chat"].files.items():
        (copy / name).write_bytes(content)
    manifest = read_manifest(copy)
    assert manifest is not None
    check_files(copy, manifest)
    assert set(manifest["files"]) == names(hub) - {"README.md", "manifest.json"}
    (copy / "README.md").write_text("rewritten on the hub")
    check_files(copy, manifest)
    # and it can be published again, by whoever has the base
    assert send(copy, "team/copy", bases=(tmp_path / "bases" / "own",)) != []
    assert names(hub, "team/copy") == names(hub)


def test_composing_twice_gives_the_same_bytes(run: Path, send: Send, tmp_path: Path) -> None:
    for place in ("one", "two"):
        send(run, dry_run=tmp_path / place)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / place).iterdir()} for place in ("one", "two"))
    assert one == two


# --- kinds of folders ---


def test_rows_are_a_data_set_and_need_no_llama_in_their_name(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    send(make_rows(tmp_path / "runs", base), "me/answers")
    assert names(hub, "datasets/me/answers") == {"README.md", "manifest.json", "rows.jsonl"}
    assert b"data_files: rows.jsonl" in hub.repos["datasets/me/answers"].files["README.md"]


def test_a_merged_model(hub: Hub, tmp_path: Path, run: Path, base: Path, send: Send) -> None:
    send(make_merged(tmp_path / "merged", run))
    assert {"model.safetensors", "config.json", f"lineage/sft-{_fingerprint(run)[:12]}.json"} <= names(hub)
    files = hub.repos["me/chat"].files
    assert json.loads(files["config.json"])["_name_or_path"] == "own"
    assert str(base).encode() not in files["manifest.json"]


def test_a_chain_is_a_collection(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    runs = tmp_path / "runs"
    sft = make_run(runs, base)
    judge = make_run(runs, base, "helpful", "reward", inputs={"sft": sft}, settings={"start_from": "sft"})
    rows = make_rows(runs, base, inputs={"sft": sft, "helpful": judge}, settings={"policy": "sft", "reward": "helpful"})
    dpo = make_run(runs, base, "dpo", "dpo", inputs={"sft": sft, "best": rows}, settings={"data": [{"stage": "best"}]})
    send(dpo, collection="Our chat")
    assert set(hub.repos) == {"me/chat", "me/chat-sft", "me/chat-helpful", "datasets/me/chat-best"}
    (collection,) = hub.collections.values()
    assert (collection["title"], collection["owner"], collection["private"]) == ("Our chat", "me", True)
    assert [(item["type"], item["id"]) for item in collection["items"]] == [
        ("model", "me/chat-sft"),
        ("model", "me/chat-helpful"),
        ("dataset", "me/chat-best"),
        ("model", "me/chat"),
    ]
    assert len([name for name in names(hub) if name.startswith("lineage/")]) == 3


def _fingerprint(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text())["fingerprint"])


# --- a base that lies on the hub ---


@pytest.fixture
def gated(hub: Hub, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a base that is only on the hub, with its licence files there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    local = llama(tmp_path, shared, "llama3.1")
    files = {path.name: path.read_bytes() for path in local.iterdir()}
    hub.repos["meta-llama/Llama-3.1-8B"] = Repo(private=False, files=files, commits=["a" * 40])
    name = {"base_name": "meta-llama/Llama-3.1-8B", "revision": "a" * 40}
    return make_run(tmp_path / "runs", local, **name)


def test_licence_files_are_fetched_with_the_base(hub: Hub, gated: Path, send: Send) -> None:
    send(gated, "me/Llama-chat")
    files = hub.repos["me/Llama-chat"].files
    assert files["LICENSE"] == hub.repos["meta-llama/Llama-3.1-8B"].files["LICENSE"]
    assert files["Notice"].startswith(b"Llama 3.1 is licensed under")
    assert b"base_model: meta-llama/Llama-3.1-8B" in files["README.md"]
    assert not any("model.safetensors" in call for call in hub.calls if "resolve" in call)


def test_a_dry_run_asks_for_what_it_does_not_fetch(hub: Hub, gated: Path, send: Send, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"not in the local cache.*--base.*hf download"):
        send(gated, "me/Llama-chat", dry_run=tmp_path / "out")
    assert hub.calls == []
    send(gated, "me/Llama-chat", dry_run=tmp_path / "out", bases=(tmp_path / "base-llama3.1",))
    assert (tmp_path / "out" / "LICENSE").is_file()


def test_a_base_that_one_may_not_read(hub: Hub, gated: Path, send: Send) -> None:
    hub.repos["meta-llama/Llama-3.1-8B"].private = True
    with pytest.raises(BaseModelError, match=r"licence files of meta-llama/Llama-3\.1-8B could not be fetched"):
        send(gated, "me/Llama-chat")


def test_a_name_without_llama_does_not_reach_the_hub(hub: Hub, gated: Path, send: Send) -> None:
    with pytest.raises(InputError, match=r"For example: Llama-chat"):
        send(gated, "me/chat")
    assert "me/chat" not in hub.repos


# --- what can go wrong ---


def test_a_wrong_token(hub: Hub, run: Path, send: Send, monkeypatch: pytest.MonkeyPatch, user: Told) -> None:
    wrong = "hf" + "_" + "wrong"
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(InputError, match=r"does not take your token.*hf auth login") as error:
        send(run)
    assert wrong not in str(error.value) and wrong not in user.text
    assert hub.repos == {}


def test_no_token(hub: Hub, run: Path, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"not logged in.*hf auth login.*HF_TOKEN"):
        send(run)


def test_the_token_goes_nowhere_but_to_the_hub(hub: Hub, run: Path, send: Send, user: Told) -> None:
    send(run)
    assert hub.tokens == {hub.token}
    assert hub.token not in user.text
    assert not any(hub.token.encode() in content for content in hub.repos["me/chat"].files.values())


def test_no_network(hub: Hub, run: Path, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(FinetuneError, match=r"could not be reached.*Nothing was uploaded; --dry-run DIR needs none"):
        send(run)


def test_offline(hub: Hub, run: Path, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _http.close_session()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        send(run)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _http.close_session()


def test_somebody_elses_name(hub: Hub, run: Path, send: Send) -> None:
    with pytest.raises(InputError, match=r"may not write to other/chat.*belongs to somebody else"):
        send(run, "other/chat")
    hub.repos["other/open"] = Repo(private=False)
    with pytest.raises(InputError, match="may not write to other/open"):
        send(run, "other/open", public=True)
    assert hub.puts == []


def test_a_repository_with_other_content(hub: Hub, run: Path, send: Send, user: Told) -> None:
    hub.repos["me/chat"] = Repo(private=True, files={"notes.md": b"mine", "README.md": b"---\nlicense: mit\n---\n"})
    user.answer = False
    send(run)
    assert hub.repos["me/chat"].files["README.md"] == b"---\nlicense: mit\n---\n"
    assert any("holds something else (notes.md)" in line for line in user.said)
    user.answer = True
    send(run)
    assert hub.repos["me/chat"].files["notes.md"] == b"mine"
    assert "adapter_model.safetensors" in names(hub)


def test_what_everybody_can_see_is_not_written_to_by_accident(hub: Hub, run: Path, send: Send, user: Told) -> None:
    hub.repos["me/chat"] = Repo(private=False)
    with pytest.raises(InputError, match=r"everybody can see it: say --public"):
        send(run)
    assert names(hub) == set()
    hub.repos["me/chat"] = Repo(private=True)
    send(run, public=True)
    assert hub.repos["me/chat"].private
    assert any("stays private" in line for line in user.said)


def test_a_connection_lost_in_the_middle_of_the_upload(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    shards = {f"model-0000{n}-of-00003.safetensors": weights(str(n)) for n in (1, 2, 3)}
    run = make_run(tmp_path / "runs", base, kind="merged", files=shards)
    hub.breaks_after = 1
    with pytest.raises(FinetuneError, match=r"connection was lost while me/chat went up.*the same command goes on"):
        send(run)
    assert names(hub) == set()  # nothing can be seen of it
    assert len(hub.puts) == 1
    hub.breaks_after = None
    send(run)
    assert names(hub) == {*shards, "README.md", "manifest.json"}
    assert len(hub.puts) == len(set(hub.puts)) == 3  # no large file was sent twice
    assert len(hub.repos["me/chat"].messages) == 1


def test_no_room(hub: Hub, run: Path, send: Send) -> None:
    hub.full = "Private repository storage limit reached, please upgrade your plan"
    with pytest.raises(FinetuneError, match=r"no room for me/chat \(Private repository storage limit"):
        send(run)


def test_a_repository_that_changed_meanwhile(hub: Hub, run: Path, send: Send, user: Told) -> None:
    hub.repos["me/chat"] = Repo(private=True)

    def meddle(question: str) -> bool:
        hub.repos["me/chat"].commits.append("1" * 40)
        return True

    user.ask = meddle
    with pytest.raises(FinetuneError, match=r"has changed meanwhile.*run the same command again"):
        send(run)


@pytest.mark.parametrize("to", ["chat", "me/", "me/a b", "https://hub/me/chat", "a/b/c"])
def test_names_that_are_none(run: Path, send: Send, to: str) -> None:
    with pytest.raises(InputError, match="give user/name"):
        send(run, to)


def test_a_folder_that_is_no_run(tmp_path: Path, send: Send) -> None:
    with pytest.raises(InputError, match=r"no such folder.*finetune show"):
        send(tmp_path / "nothing")
    (tmp_path / "x.part").mkdir()
    with pytest.raises(InputError, match="is not finished"):
        send(tmp_path / "x.part")


# --- dry runs and the command ---


def test_a_dry_run_asks_no_network_and_nobody(run: Path, send: Send, user: Told, tmp_path: Path, hub: Hub) -> None:
    send(run, dry_run=tmp_path / "release")
    assert hub.calls == [] and user.asked == []
    assert {p.name for p in (tmp_path / "release").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "tokenizer.json",
    }
    send(run)
    assert {name: (tmp_path / "release" / name).read_bytes() for name in names(hub)} == {
        name: hub.repos["me/chat"].files[name] for name in names(hub)
    }
    with pytest.raises(InputError, match="is there already"):
        send(run, dry_run=tmp_path / "release")


def test_the_command_asks_unless_told_not_to(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["publish", str(run), "--to", "me/chat"]) == 2
    printed = capsys.readouterr()
    assert "adapter_model.safetensors" in printed.out and "add --yes" in printed.err
    assert hub.repos == {}
    assert main(["publish", str(run), "--to", "me/chat", "--yes"]) == 0
    assert "me/chat" in hub.repos


def test_the_command_in_a_process_of_its_own(hub: Hub, run: Path, tmp_path: Path) -> None:
    """As a user starts it: the library finds endpoint and token in the environment, before anything is imported."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-X", "importtime", "-m", "finetune.cli.main", "publish", str(run), "--to", "me/chat"]
    done = subprocess.run([*command, "--yes"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "published: " in done.stdout
    assert hub.token not in done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time" in line}
    assert "huggingface_hub" in imported
    assert not {"torch", "transformers", "peft"} & imported
    assert "adapter_model.safetensors" in names(hub)


# --- the real thing ---


def test_a_real_chain_is_published_loaded_and_answers_as_before(
    walk: Walk, hub: Hub, send: Send, tmp_path: Path, tiny_base: Path
) -> None:
    """Trained, published, downloaded, loaded by plain peft: the same logits, and the same scores."""
    import torch
    from datasets import load_dataset
    from huggingface_hub import snapshot_download
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from finetune.release.verify import verify

    best = {
        "kind": "reject",
        "policy": "sft",
        "reward": "helpful",
        "prompts": [{"path": "questions.jsonl"}],
        "samples": 2,
        "max_new_tokens": 8,
        "keep": "pairs",
        "unfinished": "keep",
    }
    stages = {
        "sft": sft_stage(),
        "helpful": reward_stage(start_from="sft"),
        "best": best,
        "dpo": dpo_stage(start_from="sft", data=[{"stage": "best"}]),
    }
    done = walk(stages)
    send(done.folders["dpo"], licence="mit", collection="Tiny")
    send(done.folders["helpful"], "me/judge", licence="mit")
    ids = torch.tensor([[480, 483, 84, 332, 484, 198]])
    for stage, repo, auto, options in (
        ("dpo", "me/chat", AutoModelForCausalLM, {}),
        ("helpful", "me/judge", AutoModelForSequenceClassification, {"num_labels": 1}),
    ):
        copy = Path(snapshot_download(repo, local_dir=tmp_path / stage))
        found = []
        for place in (done.folders[stage], copy):
            model = PeftModel.from_pretrained(auto.from_pretrained(tiny_base, **options), place).eval()
            with torch.no_grad():
                model.config.pad_token_id = 0
                found.append(model(input_ids=ids).logits)
        assert torch.equal(*found)
        manifest = read_manifest(copy)
        assert manifest is not None
        check_files(copy, manifest)
        assert str(tiny_base).encode() not in (copy / "README.md").read_bytes()
        verified: list[str] = []
        verify(copy, base=str(tiny_base), say=verified.append)
        assert verified[-1].endswith(": verified")
    items = next(iter(hub.collections.values()))["items"]
    assert [item["id"] for item in items] == ["me/chat-sft", "me/chat-helpful", "me/chat-best", "me/chat"]
    rows = load_dataset(
        "json", data_files={"train": str(_saved(hub, "datasets/me/chat-best", tmp_path) / "rows.jsonl")}
    )
    assert {"prompt", "chosen", "rejected"} <= set(rows["train"].column_names)
    card = hub.repos["me/chat"].files["README.md"].decode()
    assert "-->|policy|" in card and "-->|reward|" in card and "-->|rows|" in card


def _saved(hub: Hub, repo: str, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in names(hub, repo):
        if "/" not in name:
            (folder / name).write_bytes(hub.repos[repo].files[name])
    return folder


def test_data_and_sources_are_in_the_manifest_by_their_digest(hub: Hub, tmp_path: Path, base: Path, send: Send) -> None:
    send(make_run(tmp_path / "runs", base, sources=[source("/data/secret-client/demo.jsonl", "sha256:abc")]))
    manifest = json.loads(hub.repos["me/chat"].files["manifest.json"])
    assert manifest["data"]["sources"][0]["source"] == "demo.jsonl"
    assert manifest["data"]["sources"][0]["digest"] == "sha256:abc"


def test_another_programs_manifest_nearby_is_no_error(hub: Hub, run: Path, send: Send) -> None:
    for content in ("{}", "no JSON", '{"format": 1}'):
        place = run.parent / f"extension-{len(content)}"
        place.mkdir()
        (place / "manifest.json").write_text(content)
    send(run)
    assert "adapter_model.safetensors" in names(hub)


@pytest.mark.parametrize("to", ["me/a--b", "me/a..b", "me/chat.git"])
def test_names_that_the_hub_does_not_take(hub: Hub, run: Path, send: Send, to: str) -> None:
    with pytest.raises(InputError, match=r"the hub takes no such name: me/"):
        send(run, to)


def test_a_recipe_is_no_folder(tmp_path: Path, send: Send) -> None:
    (tmp_path / "recipe.yaml").write_text("name: chat\n")
    with pytest.raises(InputError, match=r"is a file.*finetune show .*recipe\.yaml"):
        send(tmp_path / "recipe.yaml")


def test_a_card_that_was_edited_on_the_hub_stays(hub: Hub, run: Path, base: Path, send: Send, user: Told) -> None:
    send(run)
    repo = hub.repos["me/chat"]
    first, edited = repo.files["README.md"], b"---\nlicense: mit\n---\n# In my own words\n"
    repo.files["README.md"] = edited
    assert send(run) == []
    assert repo.files["README.md"] == edited
    assert any("README.md  was edited on the hub" in line for line in user.said)
    send(run, base_id="org/own-1b")  # changes the card, and other files
    assert repo.files["README.md"] == edited
    assert b"org/own-1b" in repo.files["manifest.json"]
    del repo.files["README.md"]
    send(run, base_id="org/own-1b")
    assert b"base_model: org/own-1b" in repo.files["README.md"]
    repo.files["README.md"] = first  # an older card of ours is none that somebody edited, once its manifest is there
    repo.files["manifest.json"] = repo.files["manifest.json"].replace(b'"card"', b'"no card"')
    send(run, base_id="org/own-1b")
    assert b"base_model: org/own-1b" in repo.files["README.md"]


def test_multimodal_models_are_pointed_out(tmp_path: Path, shared: Path, send: Send, user: Told) -> None:
    run = make_run(tmp_path / "runs", llama(tmp_path, shared, "llama4"))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["architecture"] = ["Llama4ForConditionalGeneration"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    send(run, "me/Llama-chat", dry_run=tmp_path / "out")
    assert any("base-llama4 is multimodal" in line and "European Union" in line for line in user.said)

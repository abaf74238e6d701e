"""A recipe run in a real Jupyter kernel: shown while it runs, interrupted, and gone on with to the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from stage_recipes import sft_stage, train

import finetune as ft

SECONDS = 300
MODELS = "import gc, transformers; sum(isinstance(o, transformers.LlamaForCausalLM) for o in gc.get_objects())"
RUN = "results = ft.run('recipe.yaml')\nresults"


class Kernel:
    """A kernel in a folder of its own, and what a cell sent while it ran."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, code: str, until: Callable[[], bool] | None = None) -> list[dict[str, Any]]:
        """Run a cell. until: interrupt the kernel when this holds. Returns its messages."""
        cell = self.client.execute(code)
        found: list[dict[str, Any]] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if until is not None and until():
                self.manager.interrupt_kernel()
                until = None
            try:
                message = self.client.get_iopub_msg(timeout=0.05)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != cell:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return found
            found.append({"type": message["msg_type"], **message["content"]})
        raise AssertionError(f"the cell did not end in {SECONDS} s: {code}")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(ft.__file__).parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, client = start_new_kernel(cwd=str(tmp_path), kernel_name="python3")
    yield Kernel(manager, client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def errors(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == "error"]


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_to_the_same_bits(
    kernel: Kernel, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The kernel's interrupt button: a checkpoint, one line in place of a traceback, and the rest when run again."""
    recipe = write_recipe({"sft": sft_stage(train=train(max_steps=150, checkpoint_every=1000, eval_every=50))})
    whole = ft.run(recipe, tmp_path / "whole")["sft"]
    part = tmp_path / "runs" / "tiny" / f"{whole.folder.name}.part"
    log = part / "work" / "metrics.jsonl"

    assert errors(kernel.run("import finetune as ft")) == []
    stopped = kernel.run(RUN, until=lambda: log.is_file() and log.read_text().count("learning_rate") > 20)
    [error] = errors(stopped)
    assert error["ename"] == "InterruptedRunError"
    assert "a checkpoint is saved. Run this cell again to go on" in error["evalue"]
    assert error["traceback"] == [f"InterruptedRunError: {error['evalue']}"]
    assert [path for path in (part / "work" / "checkpoints").glob("step-*") if path.suffix != ".part"]
    [alive] = [message for message in kernel.run(MODELS) if message["type"] == "execute_result"]
    assert alive["data"]["text/plain"] == "0", "the error that the kernel remembers does not hold the model"
    assert not whole.folder.with_name("tiny").exists() and not (part / "manifest.json").exists()

    messages = kernel.run(RUN)
    assert errors(messages) == []
    assert [message["text"] for message in stopped + messages if message["type"] == "stream"] == []
    shown = [message for message in messages if message["type"] in ("display_data", "update_display_data")]
    assert len({message["transient"]["display_id"] for message in shown}) == 1
    last = shown[-1]["data"]
    assert "<svg" in last["text/html"] and "150/150" in last["text/html"] and "done" in last["text/plain"]
    [result] = [message for message in messages if message["type"] == "execute_result"]
    assert "sft" in result["data"]["text/html"]

    again = ft.open_run(tmp_path / "runs" / "tiny" / whole.folder.name)
    weights = "adapter_model.safetensors"
    assert (again.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
    assert again.fingerprint == whole.fingerprint
    assert again.log.line("loss") == whole.log.line("loss")

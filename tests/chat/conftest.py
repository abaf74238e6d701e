"""The fixtures of tests/chat_lab.py; a module of that name can be imported from anywhere, a conftest cannot.

One model and one server for all tests here: none of them changes what another one sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_lab import Lab, lab, say_nothing, spm_base, tiny_base
from serve_lab import Running

from finetune.chat.model import ChatModel, open_chat

__all__ = ["chat", "lab", "running", "spm_base", "tiny_base"]


@pytest.fixture(scope="session")
def chat(lab: Lab) -> ChatModel:
    return open_chat({name: lab.runs[name] for name in ("letters", "plain")}, say=say_nothing)


@pytest.fixture(scope="session")
def running(chat: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = Running(chat, tmp_path_factory.mktemp("kept") / "preferences.jsonl")
    yield found
    found.server.stop()
    found.thread.join(5)
    assert not found.thread.is_alive()

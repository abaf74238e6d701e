"""A language model as the judge, on this machine: biases come out as computed by hand, faults cost nothing twice."""

from __future__ import annotations

import json

import pytest
from fake_judge import always_first, fake_judge, longer

from finetune.errors import FinetuneError, InputError
from finetune.evaluation import judge as judging
from finetune.evaluation.judge import RemoteJudge, open_remote
from finetune.evaluation.measurement import Measurement
from finetune.evaluation.verdicts import Judged, agreed, read_verdict, win_rate_results
from finetune.evaluation.win_rate import conversation, verdicts_of
from finetune.shapes import Completion, Dialog, Message

ASKED = [Completion(f"Question {n}?", "") for n in range(6)]
TEXTS = [("long answer", "short"), ("a", "abc"), ("same", "same"), ("eleven", "twelve"), ("abcd", "ab"), ("x", "xyz")]
"""By length: win, loss, not asked, tie, win, loss."""


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(judging, "WAIT_SECONDS", 0.01)


def measured(tmp_path, judge, say=quiet, environment=None):
    """The replies, kept in a journal below tmp_path."""
    measurement = Measurement(tmp_path, "win_rate", data={"name": "x"}, settings={"url": judge.url}, say=say)
    ask = open_remote(RemoteJudge(judge.url, "tiny"), environment=environment or {}, say=say)
    return verdicts_of(ASKED, TEXTS, ask, measurement)


def results(replies):
    judged = []
    for own in replies:
        orders = tuple(read_verdict(text) for text in own)
        judged.append(Judged(agreed(*orders) if orders else "tie", orders, (1, 1)))
    return win_rate_results(judged)


def test_a_judge_that_likes_the_longer_answer(tmp_path):
    with fake_judge(longer) as judge:
        found = results(measured(tmp_path, judge))
    assert (found["wins"], found["losses"], found["ties"]) == (2, 2, 2)
    assert found["win_rate"]["value"] == 0.5 and found["inconsistent"]["value"] == 0.0
    assert found["first"] == 0.5  # either order once
    assert len(judge.asked) == 2 * 5  # what is the same is not asked


def test_a_judge_that_likes_the_first_decides_nothing(tmp_path):
    with fake_judge(always_first) as judge:
        found = results(measured(tmp_path, judge))
    assert (found["wins"], found["losses"], found["ties"]) == (0, 0, 6)
    assert found["inconsistent"]["value"] == 1.0 and found["first"] == 1.0 and found["unreadable"] == 0


def test_what_cannot_be_read_is_a_tie_and_counted(tmp_path):
    def garbage(first, second):
        return "I cannot say" if {first, second} == {"long answer", "short"} else longer(first, second)

    with fake_judge(garbage) as judge:
        found = results(measured(tmp_path, judge))
    assert (found["wins"], found["losses"], found["ties"]) == (1, 2, 3)
    assert found["unreadable"] == 2 and found["inconsistent"]["value"] == 0.0
    assert found["win_rate"]["value"] == pytest.approx((1 + 3 / 2) / 6)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path, status):
    with fake_judge(longer, fail=lambda number: status if number in (0, 1, 5) else None) as judge:
        found = results(measured(tmp_path, judge))
    assert (found["wins"], found["losses"]) == (2, 2) and judge.requests == 10 + 3


def test_a_judge_that_fails_for_good_loses_nothing_that_it_said(tmp_path):
    with fake_judge(longer, fail=lambda number: 500 if number >= 4 else None) as judge:
        with pytest.raises(FinetuneError, match=r"failed 6 times \(status 500\)"):
            measured(tmp_path, judge)
        assert len(judge.asked) == 4
        judge.fail = lambda number: None
        found = results(measured(tmp_path, judge))
    assert len(judge.asked) == 10  # the first four were not asked again
    assert (found["wins"], found["losses"], found["ties"]) == (2, 2, 2)


def test_a_refusal_is_told_at_once(tmp_path):
    with fake_judge(longer, fail=lambda number: 401) as judge, pytest.raises(InputError, match=r"refuses \(401\)"):
        measured(tmp_path, judge)
    assert judge.requests <= judging.AT_ONCE


def test_a_model_that_takes_no_temperature_is_asked_without(tmp_path):
    with fake_judge(longer, fail=lambda number: 400 if number == 0 else None) as judge:
        assert results(measured(tmp_path, judge))["wins"] == 2
    assert any("temperature" not in content for content in judge.asked)


def test_a_judge_on_this_machine_is_not_asked_through_a_proxy(tmp_path, monkeypatch):
    """The key would go to the proxy unencrypted."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with fake_judge(longer) as proxy, fake_judge(longer) as judge:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        measured(tmp_path, judge, environment={"FINETUNE_JUDGE_KEY": "a-key"})
    assert proxy.requests == 0 and judge.requests == 2 * 5


def test_prompts_do_not_follow_a_redirection(tmp_path):
    with fake_judge(longer, fail=lambda number: 302) as judge, pytest.raises(InputError, match=r"refuses \(302\)"):
        measured(tmp_path, judge, environment={"OPENAI_API_KEY": "secret"})


def test_where_prompts_and_key_go_is_said_first_and_the_key_is_nowhere(tmp_path):
    said: list[str] = []
    with fake_judge(longer) as judge:
        environment = {"FINETUNE_JUDGE_KEY": "secret-1", "OPENAI_API_KEY": "secret-2"}
        measured(tmp_path, judge, said.append, environment)
    assert judge.url in said[0] and "both answers are sent there" in said[0] and "FINETUNE_JUDGE_KEY" in said[0]
    assert judge.headers[0]["Authorization"] == "Bearer secret-1"
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "secret" not in written + "".join(said) and "VERDICT" in written
    content = judge.asked[0]
    assert content["model"] == "tiny" and content["temperature"] == 0
    assert "secret" not in json.dumps(content)


@pytest.mark.parametrize(
    ("url", "environment", "told"),
    [
        ("ftp://somewhere/v1", {}, "neither the folder"),
        ("http://user:word@somewhere/v1", {}, "without user, password"),
        ("https://somewhere/v1?key=abc", {}, "without user, password and query"),
        ("http://somewhere.example/v1", {"OPENAI_API_KEY": "secret"}, "unencrypted"),
    ],
)
def test_addresses_that_are_refused(url, environment, told):
    with pytest.raises(InputError, match=told) as error:
        open_remote(RemoteJudge(url, "tiny"), environment=environment, say=quiet)
    assert "secret" not in str(error.value)


def test_a_conversation_is_shown_by_turns():
    turns = (Message("user", "Hello"), Message("assistant", "Yes?"), Message("user", "Why?"))
    assert conversation(Dialog(turns)) == "user: Hello\n\nassistant: Yes?\n\nuser: Why?"
    assert conversation(Dialog(turns[:1])) == "Hello" and conversation(Completion("Once", "")) == "Once"

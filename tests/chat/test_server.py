"""OpenAI's addresses as clients meet them: by the documented shapes, and by OpenAI's own client."""

from __future__ import annotations

import time

import openai
import pytest
from chat_lab import ASKED, PLAIN, SHORT, WARM
from serve_lab import GREEDY, QUESTION, Running, events

from finetune.chat.model import Answering, ChatModel
from finetune.chat.stops import StopTexts
from finetune.shapes import Text


def test_models(running: Running) -> None:
    status, _, body = running.ask("GET", "/v1/models")
    assert status == 200 and body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["letters", "plain", "base"]
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in body["data"])
    assert running.ask("GET", "/v1/models/plain")[2] == body["data"][1]
    status, _, body = running.ask("GET", "/v1/models/gpt-9")
    assert status == 404 and body["error"]["code"] == "model_not_found"


def test_a_whole_answer(running: Running, chat: ChatModel) -> None:
    status, body = running.complete()
    reply = chat.answer(ASKED[:1], "plain", SHORT)[0][0]
    assert status == 200 and body["object"] == "chat.completion" and body["model"] == "plain"
    assert body["id"].startswith("chatcmpl-") and abs(body["created"] - time.time()) < 60
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": PLAIN, "refusal": None}
    assert choice["index"] == 0 and choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
    assert body["usage"] == {**usage, "total_tokens": sum(usage.values())}


def test_several_drawn_answers_are_the_models(running: Running, chat: ChatModel) -> None:
    status, body = running.complete(model="base", temperature=1.0, top_p=0.95, n=3, seed=4)
    assert status == 200
    wanted = chat.answer(ASKED[:1], "base", WARM)[0]
    assert [choice["message"]["content"] for choice in body["choices"]] == [reply.text for reply in wanted]
    assert [choice["finish_reason"] for choice in body["choices"]] == [
        "stop" if reply.finished else "length" for reply in wanted
    ]
    assert body["usage"]["completion_tokens"] == sum(reply.tokens for reply in wanted)
    # OpenAI's defaults: temperature 1, and no seed: every answer another one
    texts = {running.complete(model="base", temperature=None)[1]["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 3


def test_a_stream_is_the_same_answer(running: Running) -> None:
    sent = {**GREEDY, "model": "base", "temperature": 1.0, "seed": 3, "n": 2}
    whole = running.ask("POST", "/v1/chat/completions", sent)[2]
    status, headers, text = running.ask(
        "POST", "/v1/chat/completions", {**sent, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert status == 200 and headers["Content-Type"] == "text/event-stream"
    *parts, last = events(text)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert len({event["id"] for event in parts}) == 1 and len(parts) > 10
    for index in (0, 1):
        own = [event["choices"][0] for event in parts if event["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        told = "".join(choice["delta"].get("content", "") for choice in own)
        assert told == whole["choices"][index]["message"]["content"]
        assert own[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]
    assert all(event["object"] == "chat.completion.chunk" and event["usage"] is None for event in parts)
    plain = events(running.ask("POST", "/v1/chat/completions", {**GREEDY, "stream": True})[2])
    assert all("usage" not in event and event["choices"] for event in plain)


def test_raw_completions(running: Running, chat: ChatModel) -> None:
    prompts = ["Once upon a time", "The capital of"]
    sent = {"model": "base", "prompt": prompts, "temperature": 0}
    status, _, body = running.ask("POST", "/v1/completions", sent)
    assert status == 200 and body["object"] == "text_completion"
    wanted = [chat.answer([Text(each)], "base", Answering(max_new_tokens=16))[0][0] for each in prompts]  # 16: OpenAI's
    assert [choice["text"] for choice in body["choices"]] == [reply.text for reply in wanted]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    parts = events(running.ask("POST", "/v1/completions", {**sent, "stream": True})[2])
    for index in (0, 1):
        own = [event["choices"][0]["text"] for event in parts if event["choices"][0]["index"] == index]
        assert "".join(own) == wanted[index].text


def test_stop_texts_end_an_answer(running: Running) -> None:
    status, body = running.complete(stop=["of It", "never"])
    (choice,) = body["choices"]
    assert (
        status == 200 and choice["message"]["content"] == "Rome is the capital " and choice["finish_reason"] == "stop"
    )
    assert 0 < body["usage"]["completion_tokens"] < running.complete()[1]["usage"]["completion_tokens"]
    told = [e["choices"][0]["delta"].get("content", "") for e in events(
        running.ask("POST", "/v1/chat/completions", {**GREEDY, "stop": "of It", "stream": True})[2]
    )]  # fmt: skip
    assert "".join(told) == "Rome is the capital "
    assert running.complete(stop="Italy. And")[1]["choices"][0]["message"]["content"] == PLAIN


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("stops", "text", "told"),
    [
        (["END"], "so it ENENDs here", "so it EN"),
        (["aab"], "aaaab", "aa"),
        (["b", "abc"], "xabc", "xa"),
        ([], "all of it", "all of it"),
        (["never"], "nevnever", "nev"),
        (["zz"], "a z", "a z"),
    ],
)
def test_stop_texts(size: int, stops: list[str], text: str, told: str) -> None:
    cut, found = StopTexts(stops), ""
    for at in range(0, len(text), size):
        found += cut.feed(text[at : at + size])
        assert told.startswith(found)
    assert found + cut.rest() == told


@pytest.mark.parametrize(
    ("changes", "status", "words", "param"),
    [
        ({"model": "gpt-9"}, 404, "The model 'gpt-9' does not exist here; there are letters, plain, base", "model"),
        ({"model": None}, 400, "must provide a model", "model"),
        ({"messages": []}, 400, "at least one message", "messages"),
        ({"messages": "hello"}, 400, "at least one message", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role should be", "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "text or a list of text parts", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "nothing else is served",
            "messages[0].content[0]",
        ),
        ({"messages": [QUESTION, {"role": "assistant", "content": "It"}]}, 400, "must end with a user", None),
        ({"messages": [QUESTION, {"role": "system", "content": "Be."}]}, 400, "can only be the first", None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "half of a pair", None),
        ({"messages": [{"role": "user", "content": "What is it? " * 100}]}, 400, "leaves no room", "messages"),
        ({"temperature": 2.5}, 400, "from 0 to 2", "temperature"),
        ({"temperature": 10**400}, 400, "from 0 to 2", "temperature"),
        ({"model": "\ud800"}, 400, "half of a pair", None),
        ({"temperature": True}, 400, "should be a number", "temperature"),
        ({"top_p": "0.5"}, 400, "should be a number", "top_p"),
        ({"n": 0}, 400, "from 1 to 8", "n"),
        ({"n": 1.5}, 400, "whole number", "n"),
        ({"max_tokens": 0}, 400, "at least 1", "max_tokens"),
        ({"seed": 2**63}, 400, "seed should be", "seed"),
        ({"stream": "yes"}, 400, "true or false", "stream"),
        ({"stop": ["a"] * 5}, 400, "4 at most", "stop"),
        ({"stop": [""]}, 400, "none of them empty", "stop"),
        ({"logprobs": True}, 400, "logprobs is not served", "logprobs"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not served", "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "not served", "response_format"),
        ({"frequency_penalty": 0.5}, 400, "not served", "frequency_penalty"),
        ({"temprature": 1}, 400, "Unrecognized request argument supplied: temprature", "temprature"),
        ({"prompt": "x"}, 400, "Unrecognized", "prompt"),
    ],
)
def test_what_is_refused(running: Running, changes: dict, status: int, words: str, param: str | None) -> None:
    found, error = running.refused(**changes)
    assert found == status and words in error["message"] and error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_what_asks_for_nothing_special_is_taken(running: Running) -> None:
    neutral = {
        "logprobs": False, "tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "user": "me",
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "metadata": {"a": "b"}, "store": False,
        "max_tokens": None, "max_completion_tokens": 40, "stream": False, "stop": None, "top_p": 1, "n": None,
    }  # fmt: skip
    status, body = running.complete(**neutral)
    assert status == 200 and body["choices"][0]["message"]["content"] == PLAIN
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is 3?"}]
    developer = {"role": "developer", "content": " "}
    status, body = running.complete(messages=[developer, {"role": "user", "content": parts}])
    assert body["choices"][0]["message"]["content"] == PLAIN
    # more tokens than there are is the room that is left; a context that is too long has OpenAI's code
    assert running.complete(max_tokens=10**9)[0] == 200
    long = {"role": "user", "content": "What is it? " * 100}
    assert running.refused(messages=[long])[1]["code"] == "context_length_exceeded"


def test_the_openai_client(running: Running) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["letters", "plain", "base"]
    asked = [{"role": "user", "content": "What is 3?"}]
    whole = client.chat.completions.create(model="plain", messages=asked, temperature=0)
    assert whole.choices[0].message.content == PLAIN and whole.usage is not None and whole.usage.total_tokens > 10
    text = ""
    stream = client.chat.completions.create(
        model="plain", messages=asked, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert text == PLAIN and chunk.usage == whole.usage
    raw = client.completions.create(model="base", prompt="Once upon a time", max_tokens=5, temperature=0)
    assert raw.usage is not None and raw.usage.completion_tokens <= 5
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.chat.completions.create(model="gpt-9", messages=asked)
    with pytest.raises(openai.BadRequestError, match="tools is not served"):
        client.chat.completions.create(
            model="plain", messages=asked, tools=[{"type": "function", "function": {"name": "f"}}]
        )

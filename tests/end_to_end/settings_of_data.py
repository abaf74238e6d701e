"""What settings of data sources and of held-out rows change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from settings_lab import Lab, S, hub, hub_rows, refused, source


def data_path(lab: Lab) -> None:
    report = lab.run(source(lab, "others.jsonl")).manifest["data"]
    assert report["rows"] == 20


def data_hub(lab: Lab) -> None:
    rows = hub_rows(lab)
    assert len(rows) == 9 and "easy train 0" in rows[0]
    assert lab.plan(hub()) != lab.plan()


def data_subset(lab: Lab) -> None:
    assert all("hard train" in row for row in hub_rows(lab, subset="hard"))
    assert lab.plan(hub(subset="hard")) != lab.plan(hub())


def data_split(lab: Lab) -> None:
    assert all("easy test" in row for row in hub_rows(lab, split="test"))
    assert lab.plan(hub(split="test")) != lab.plan(hub())


def data_revision(lab: Lab) -> None:
    assert lab.plan(hub(revision="2" * 40)) != lab.plan(hub())


def data_streaming(lab: Lab) -> None:
    """A stream's rows are its first; a take from a whole data set is drawn."""
    streamed, drawn = hub_rows(lab, streaming=True, take=4), hub_rows(lab, take=4)
    assert streamed == hub_rows(lab)[:4]
    assert len(drawn) == 4 and drawn != streamed
    refused(lab, hub(streaming=True), "streaming: needs hub and take")


def data_stage(lab: Lab) -> None:
    second = {"kind": "sft", "data": [{"stage": "sft"}]}
    refused(lab, {"stages.again": second}, "stages.again.data[0].stage", "gives an adapter that writes text, not rows")


def data_format(lab: Lab) -> None:
    named = {kind: lab.run(source(lab, "both.jsonl", format=kind)) for kind in ("text", "prompt_completion")}
    assert (
        named["text"].manifest["data"]["trained_tokens"]
        != (named["prompt_completion"].manifest["data"]["trained_tokens"])
    )


def data_fields(lab: Lab) -> None:
    refused(lab, source(lab, "named.jsonl"), "the format of its rows is not known")
    seen = lab.run(source(lab, "named.jsonl", fields={"prompt": "ask", "completion": "say"}))
    assert seen.manifest["data"]["tokens"] == lab.run().manifest["data"]["tokens"]


def data_take(lab: Lab) -> None:
    assert lab.run(source(lab, take=10)).manifest["data"]["rows"] == 10


def data_weight(lab: Lab) -> None:
    report = lab.run(source(lab, weight=2.0)).manifest["data"]
    assert report["epoch_rows"] == 2 * report["train_rows"]


def fraction(lab: Lab) -> None:
    rows = {share: lab.run({S + "held_out.fraction": share}).manifest["data"]["held_out_rows"] for share in (0.0, 0.5)}
    assert rows[0.0] == 0 and rows[0.5] == 16


def max_rows(lab: Lab) -> None:
    assert lab.run({S + "held_out.max_rows": 2}).manifest["data"]["held_out_rows"] == 2


def held_out_data(lab: Lab) -> None:
    report = lab.run({S + "held_out.data": [{"path": str(lab.root / "others.jsonl")}]}).manifest["data"]
    assert (report["train_rows"], report["held_out_rows"]) == (32, 20)


CHECKS: Mapping[str, Callable[[Lab], object]] = {
    "DataSource.path": data_path,
    "DataSource.hub": data_hub,
    "DataSource.stage": data_stage,
    "DataSource.subset": data_subset,
    "DataSource.split": data_split,
    "DataSource.revision": data_revision,
    "DataSource.streaming": data_streaming,
    "DataSource.format": data_format,
    "DataSource.fields": data_fields,
    "DataSource.take": data_take,
    "DataSource.weight": data_weight,
    "HeldOut.fraction": fraction,
    "HeldOut.max_rows": max_rows,
    "HeldOut.data": held_out_data,
}

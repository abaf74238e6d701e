"""What an evaluation found, in words: all of it for `finetune eval`, one line of it for `finetune show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.cli.eval_answers import answer_lines
from finetune.engine.progress import duration
from finetune.plan.evaluations import Evaluation
from finetune.reports.words import counted

_WORDS = {
    "reward": "mean score",
    "theirs": "of {theirs}",
    "difference": "ours minus theirs",
    "win_rate": "win rate, a tie is half a win",
    "at_equal_length": "at equal length",
    "inconsistent": "orders that contradict each other",
    "prompt_strict": "prompts followed, strict",
    "prompt_loose": "prompts followed, loose",
    "instruction_strict": "instructions followed, strict",
    "instruction_loose": "instructions followed, loose",
    "accuracy": "right",
}
"""What figures with an interval are called, in the order they are shown; the loss has a line of its own."""
_SHARES = frozenset(_WORDS) - {"theirs", "difference", "reward"}
_CHIEF = ("win_rate", "difference", "accuracy", "prompt_strict", "reward", "loss", "mean")
"""The figure that says it in one line, the first of these that is there."""


def is_interval(value: object) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def plain(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results for a script: a figure with an interval as its value under its name, and name_low, name_high beside."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if is_interval(value):
            flat |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            flat[name] = value
    return flat


def shown(evaluation: Evaluation) -> list[str]:
    """Lines for the terminal: a small table of figures with their 95 % intervals, then what else there is to say."""
    results = evaluation.results
    if evaluation.task == "score":
        return _scores(results)
    if evaluation.task == "loss" and evaluation.against is None:
        return [f"{_loss(results)}"]
    lines = [_loss(results)] if evaluation.task == "loss" else []
    figures = {name: results[name] for name in _WORDS if is_interval(results.get(name))}
    if evaluation.task == "lm_eval":
        figures = {
            f"{task} {metric}": value for task, found in results["tasks"].items() for metric, value in found.items()
        }
    names = {name: _WORDS.get(name, name).format(theirs=_theirs(evaluation)) for name in figures}
    width = max(map(len, names.values()), default=0)
    for name, value in figures.items():
        share = name in _SHARES or evaluation.task == "lm_eval"
        lines.append(f"{names[name]:<{width}}  {_figure(value, share)}")
    lines += _counts(evaluation)
    return lines


def in_one_line(evaluation: Evaluation) -> str:
    """win_rate against quickstart/sft on held-out rows of dpo: 57.3% (49.3% to 64.9%)"""
    results = evaluation.results
    words: list[str] = [evaluation.task]
    if evaluation.against:
        words.append(f"against {evaluation.against['name']}")
    if evaluation.data.get("name"):
        words.append(f"on {evaluation.data['name']}")
    chief = next((name for name in _CHIEF if is_interval(results.get(name))), None)
    if chief is not None:
        label = f"{_WORDS[chief]} " if chief == "difference" else ""
        return f"{' '.join(words)}: {label}{_figure(results[chief], chief in _SHARES)}"
    if evaluation.task == "lm_eval":
        found = [f"{task} {_first(values)}" for task, values in results["tasks"].items()]
        return f"lm_eval: {', '.join(found)}"
    rows = f"{counted(len(evaluation.rows), 'prompt')} answered by {', '.join(results.get('names', ()))}"
    return f"{' '.join(words)}: {rows}"


def _first(values: Mapping[str, Any]) -> str:
    name, value = next(iter(values.items()))
    return f"{name} {_figure(value, True)}"


def _figure(value: Mapping[str, Any], is_share: bool) -> str:
    form = ".1%" if is_share and 0 <= value["value"] <= 1 else ".4f"
    if value.get("low") is None:
        return f"{value['value']:{form}}"
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _theirs(evaluation: Evaluation) -> str:
    return str((evaluation.against or {}).get("name", "the other"))


def _counts(evaluation: Evaluation) -> list[str]:
    results, lines = evaluation.results, []
    if evaluation.task == "win_rate":
        won, lost, tied = (f"{results[name]:,}" for name in ("wins", "losses", "ties"))
        lines.append(f"{counted(results['prompts'], 'prompt')}: {won} won, {lost} lost, {tied} tied")
        lines.append(
            f"length: {results['mean_tokens']:.0f} tokens against {results['their_mean_tokens']:.0f}"
            + _part(results, "longer_wins", "; of the pairs that someone won the longer answer won {:.0%}")
        )
        if results.get("at_equal_length_left_out"):
            lines.append(f"win rate at equal length: left out, {results['at_equal_length_left_out']}")
        if "unreadable" in results:
            lines.append(
                f"the judge: {counted(results['unreadable'], 'verdict')} unreadable"
                + _part(results, "first", "; {:.0%} of its verdicts for one answer went to the one shown first")
                + (
                    f"; of {counted(results['identical'], 'pair')} both texts were the same"
                    if results["identical"]
                    else ""
                )
            )
    if evaluation.task == "gsm8k":
        lines.append(
            f"{results['right']:,} of {results['problems']:,} problems; {results['without_number']:,} answers without "
            f"a number, {results['with_mark']:.0%} with ####"
        )
    if evaluation.task == "ifeval":
        lines.append(f"{counted(results['instructions'], 'instruction')} in {counted(len(evaluation.rows), 'prompt')}")
        lines += [f"  {kind}: {v['value']:.0%} of {v['instructions']:,}" for kind, v in results["by_kind"].items()]
    if evaluation.task == "answers":
        lines += answer_lines(evaluation)
        lines += [f"{name}: {tokens:.0f} tokens an answer" for name, tokens in results["mean_tokens"].items()]
    cut = results.get("unfinished"), results.get("their_unfinished")
    if any(cut):
        shares = " and ".join(f"{share:.0%}" for share in cut if share is not None)
        lines.append(f"{shares} of the answers did not end by themselves: --max-new-tokens cut them")
    lines.append(f"{counted(len(evaluation.rows), 'row')} in {duration(evaluation.seconds)}")
    return lines


def _part(results: Mapping[str, Any], name: str, words: str) -> str:
    return "" if results.get(name) is None else words.format(results[name])


def _loss(results: Mapping[str, Any]) -> str:
    many = "" if results["perplexity"] is None else f", perplexity {results['perplexity']:,.2f}"
    loss = results["loss"]
    over = f"{counted(results['tokens'], 'token')} of {counted(results['rows'], 'row')}"
    return f"loss {loss['value']:.4f} nats per token ({loss['low']:.4f} to {loss['high']:.4f}){many}, over {over}"


def _scores(results: Mapping[str, Any]) -> list[str]:
    mean = results["mean"]
    lines = [
        f"scores: mean {mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f}), deviation "
        f"{results['deviation']:.3f}, from {results['lowest']:.3f} to {results['highest']:.3f}, of "
        f"{counted(results['answers'], 'answer')} in {counted(results['rows'], 'row')}"
    ]
    if results.get("alike"):
        lines.append(f"{results['alike']:,} answers are like a better one of their comparison: not in the accuracy")
    if report := results.get("report"):
        lines.append(f"{_accuracy(report)}, mean gap {report['mean_gap']:.2f}, log loss {report['log_loss']:.3f}")
        lines.append(
            f"calibration error {report['calibration']['ece']:.3f}, Brier {report['calibration']['brier']:.3f}"
        )
        correlation = report["length"]["pairs"]["spearman"]
        if correlation is not None:
            lines.append(f"rank correlation of gap and difference in length {correlation:+.2f}")
        for rating, found in report["by_rating"].items():
            lines.append(f"  {rating}: {_accuracy(found)}")
        for column, values in report["by_slice"].items():
            lines += [f"  {column} {value}: {_accuracy(found)}" for value, found in values.items()]
    return lines


def _accuracy(found: Mapping[str, Any]) -> str:
    low, high = found["low"], found["high"]
    return f"accuracy {found['accuracy']:.3f} ({low:.3f} to {high:.3f}) over {counted(found['pairs'], 'pair')}"

"""The main job on the carried model: `recipes/quickstart.yaml`, the whole chain from SFT to PPO and DPO, then what came
of it.

    make quickstart        (or: python scripts/quickstart.py [--set seed=18] [--runs DIR])

Training is `finetune run`; the adapters are then loaded with plain peft from the folders that `finetune show` names.

Questions are answered greedily. An answer counts when it is the expected one from its first character to its last and
the model stopped there by itself. Descriptions are sampled at temperature 1, of people and towns that no row to train
on describes, and judged by the rule that made the comparisons: `preferred` in quickstart_preferences.py, with Wilson's
95 % interval. What the later stages cost is measured too: the questions are asked again, and a description is compared
with all that is known of its subject.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickstart_preferences import preferred, tells_truth
from quickstart_world import World, build_world

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Path("recipes") / "quickstart.yaml"
QUESTION_TOKENS = 24  # the longest expected answer has fewer than 16
DESCRIPTION_TOKENS = 64  # the longest in the data has 51
ROWS = 72  # prompts that are answered together
SAMPLES = 2  # descriptions of each prompt
SHOWN = 5  # rows in a table
TUNED = ("sft", "sft2", "ppo", "dpo")  # stages whose adapters answer


def main() -> int:
    parser = argparse.ArgumentParser(description="Train recipes/quickstart.yaml and measure what came of it.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `finetune run`")
    parser.add_argument("--runs", default="runs", help="folder that runs are kept in (%(default)s)")
    given = parser.parse_args()
    options = (f"--runs={given.runs}", *(f"--set={change}" for change in given.set))

    # Threads that wait must sleep: where others use the cores too, those that spin made this model 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = time.perf_counter()
    code = finetune("run", *options).returncode
    if code != 0:
        return code
    trained = time.perf_counter()
    stages = {stage["name"]: stage for stage in json.loads(finetune("show", "--json", *options, capture=True).stdout)}

    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    import torch
    from peft import PeftModel

    from finetune.model.base import choose_device, choose_precision, load_base
    from finetune.plan.base_files import locate_base
    from finetune.recipe.load import load_recipe

    loaded = load_recipe(ROOT / RECIPE, given.set)
    recipe = loaded.recipe
    questions, expected = read_questions(loaded.folder / str(recipe.stages["sft"].held_out.data[0].path))
    topics = read_topics(loaded.folder / str(recipe.stages["dpo"].held_out.data[0].path)) * SAMPLES

    files = locate_base(recipe.model, loaded.folder, weights=True)
    chat = Chat.of(files, recipe.model.template)
    device = choose_device(recipe.model.device)
    base = load_base(files.folder, choose_precision(recipe.model.load_in, recipe.model.compute, device), device)
    answers, told = {}, {}
    with torch.inference_mode():
        answers["base"] = chat.answer(base, questions)
        tuned = PeftModel.from_pretrained(base, stages[TUNED[0]]["path"], adapter_name=TUNED[0]).eval()
        for name in TUNED:
            if name not in tuned.peft_config:
                tuned.load_adapter(stages[name]["path"], adapter_name=name)
            tuned.set_adapter(name)
            answers[name] = chat.answer(tuned, questions)
            told[name] = chat.describe(tuned, topics, recipe.seed)
    measured = time.perf_counter()

    columns, world = ("base", *(f"after {name}" for name in TUNED)), build_world()
    rows = list(zip(questions, *answers.values(), expected, strict=True))[:SHOWN]
    show_table("Questions that were never trained on", ("question", *columns, "expected"), rows)
    rows = list(zip(topics, *told.values(), strict=True))[:SHOWN]
    show_table("Descriptions of people and towns that no training row is about", ("prompt", *columns[1:]), rows)
    figures = [
        (f"{len(questions)} questions, exact", *(exact(said, expected) for said in answers.values())),
        (f"{len(topics)} descriptions, kind", "", *(kind(said) for said in told.values())),
        ("95% interval", "", *(interval([preferred(answer) for answer in said]) for said in told.values())),
        ("wholly true", "", *(true(said, topics, world) for said in told.values())),
    ]
    show_table("Measured on what was held out", ("", *columns), figures)
    metrics = {name: stage["metrics"] for name, stage in stages.items()}
    best = list(metrics["best"]["best_of"].items())
    print(
        f"\nReward model: finds the better answer in {metrics['helpful']['held_out_metrics']['accuracy']:.1%} of "
        f"{len(topics) // SAMPLES} held-out comparisons.\n"
        f"Rejection sampling: mean score {best[0][1]:.2f} of one answer, {best[-1][1]:.2f} of the best of "
        f"{best[-1][0]}.\n"
        f"PPO: held-out score {metrics['ppo']['held_out_reward_before']:.2f} -> "
        f"{metrics['ppo']['held_out_reward_after']:.2f}, at a KL of {metrics['ppo']['held_out_kl_after']:.2f} nats to "
        "where it began.\n"
        f"Training took {trained - start:.0f} s with start-up, measuring {measured - trained:.0f} s.\n\n"
        + "\n".join(["Look at it:", *next_commands(options)])
    )
    return 0


def finetune(command: str, *options: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `finetune COMMAND recipes/quickstart.yaml`, as a user would in the project's root."""
    words = [sys.executable, "-m", "finetune.cli.main", command, str(RECIPE), *options]
    return subprocess.run(words, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None)


def next_commands(options: Sequence[str]) -> list[str]:
    """How to look at what was made, as typed in the project's root. options: the same --runs and --set."""
    changed = shlex.join(option for option in options if option != "--runs=runs")
    return [
        f".venv/bin/finetune {command}{' ' * bool(changed)}{changed}"
        for command in (
            f"report {RECIPE} --open",
            f"chat {RECIPE} --stage dpo --against base",
            f"serve {RECIPE} --stage sft --stage dpo",
        )
    ]


def read_questions(path: Path) -> tuple[list[str], list[str]]:
    """The questions of a messages file, and their answers."""
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [row[0]["content"] for row in rows], [row[1]["content"] for row in rows]


def read_topics(path: Path) -> list[str]:
    """The prompts of a file of comparisons."""
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Chat:
    """How to ask the model: the tokenizer, the family's template, and the ids of its pad and stop tokens."""

    tokenizer: Any
    family: Any
    pad: int
    stops: list[int]

    @classmethod
    def of(cls, files: Any, template: Any) -> Chat:
        from finetune.data.tokenizer import Tokenizer
        from finetune.families.detect import resolve

        tokenizer = Tokenizer.load(files.folder)
        special = tokenizer.special_tokens
        resolved = resolve(files.config, special, template, base_chat_template=files.chat_template)
        stops = [special[token] for token in resolved.family.eos_tokens]
        return cls(tokenizer, resolved.family, special[resolved.pad_token], stops)

    def answer(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """Greedy answers."""
        return self._generate(model, prompts, max_new_tokens=QUESTION_TOKENS, do_sample=False)

    def describe(self, model: Any, prompts: Sequence[str], seed: int) -> list[str]:
        """Answers sampled from the model's own distribution: temperature 1, nothing cut off."""
        import torch

        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        return self._generate(model, prompts, max_new_tokens=DESCRIPTION_TOKENS, **settings)

    def _generate(self, model: Any, prompts: Sequence[str], **settings: Any) -> list[str]:
        """Padded on the left in batches of like lengths. An answer that did not stop ends in an ellipsis."""
        import torch

        rows = [self._ids(prompt) for prompt in prompts]
        answers = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for at in range(0, len(order), ROWS):
            chosen = order[at : at + ROWS]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.tensor([[self.pad] * (width - len(rows[i])) + rows[i] for i in chosen], device=model.device)
            mask = (ids != self.pad).long()
            made = model.generate(
                input_ids=ids, attention_mask=mask, eos_token_id=self.stops, pad_token_id=self.pad, **settings
            )
            for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
                end = next((n for n, token in enumerate(row) if token in self.stops), None)
                answers[i] = self.tokenizer.decode(row[:end]).strip() + ("" if end is not None else " …")
        return answers

    def _ids(self, prompt: str) -> list[int]:
        """A question's ids up to where the answer begins, by the same encoder as in training."""
        from finetune.data.encode import encode_prompt
        from finetune.shapes import Dialog, Message

        return encode_prompt(Dialog((Message("user", prompt),)), self.family, self.tokenizer)


def exact(answers: Sequence[str], expected: Sequence[str]) -> str:
    return share([answer == right for answer, right in zip(answers, expected, strict=True)])


def kind(answers: Sequence[str]) -> str:
    return share([preferred(answer) for answer in answers])


def true(answers: Sequence[str], prompts: Sequence[str], world: World) -> str:
    return share([tells_truth(answer, prompt, world) for answer, prompt in zip(answers, prompts, strict=True)])


def share(verdicts: Sequence[bool]) -> str:
    return f"{sum(verdicts) / len(verdicts):.1%}"


def interval(verdicts: Sequence[bool]) -> str:
    """Wilson's 95 % interval of a share."""
    n, p, z = len(verdicts), sum(verdicts) / len(verdicts), 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{100 * (middle - half) / (1 + z * z / n):.0f} - {100 * (middle + half) / (1 + z * z / n):.0f}%"


def show_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_lines=True)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("\n\n", "\n") for cell in row))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

"""The main job on the carried model: train `recipes/quickstart.yaml`, then ask the held-out questions before and after.

    make quickstart        (or: python scripts/quickstart.py)

Training is `finetune sft`; the adapter is then loaded with plain peft from the folder that `finetune show` names. An
answer counts when it is the expected one from its first character to its last and the model stopped there by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Path("recipes") / "quickstart.yaml"
NEW_TOKENS = 24  # tokens; the longest expected answer has fewer than 16
ROWS = 50  # questions that are answered together
SHOWN = 6  # questions in the table


def main() -> int:
    # Threads that wait must sleep: where others use the cores too, those that spin made this model 20 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = time.perf_counter()
    code = finetune("sft").returncode
    if code != 0:
        return code
    after_training = time.perf_counter()
    stage = json.loads(finetune("show", "--json", capture=True).stdout)[0]

    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    import torch
    from peft import PeftModel

    from finetune.data.tokenizer import Tokenizer
    from finetune.families.detect import resolve
    from finetune.model.base import choose_device, choose_precision, load_base
    from finetune.plan.base_files import locate_base
    from finetune.recipe.load import load_recipe

    loaded = load_recipe(ROOT / RECIPE)
    model, sft = loaded.recipe.model, loaded.recipe.stages["sft"]
    files = locate_base(model, loaded.folder, weights=True)
    tokenizer = Tokenizer.load(files.folder)
    family = resolve(files.config, tokenizer.special_tokens, model.template, base_chat_template=files.chat_template)
    rows = read_rows(loaded.folder / str(sft.held_out.data[0].path))
    prompts = [prompt_ids(row, family.family, tokenizer) for row in rows]

    device = choose_device(model.device)
    base = load_base(files.folder, choose_precision(model.load_in, model.compute, device), device)
    pad = tokenizer.special_tokens[family.pad_token]
    stops = [tokenizer.special_tokens[token] for token in family.family.eos_tokens]
    with torch.inference_mode():
        before = generate(base, prompts, tokenizer, pad, stops)
        after = generate(PeftModel.from_pretrained(base, stage["path"]).eval(), prompts, tokenizer, pad, stops)
    done = time.perf_counter()

    questions, expected = zip(*((row[-2]["content"], row[-1]["content"]) for row in rows), strict=True)
    print_table(questions, before, after, expected)
    print(
        f"\n{len(expected)} held-out questions, answered exactly: "
        f"{exact(before, expected)} before, {exact(after, expected)} after training.\n"
        f"The right words somewhere in the answer: "
        f"{within(before, expected)} before, {within(after, expected)} after.\n"
        f"Training took {after_training - start:.0f} s with start-up, the questions {done - after_training:.0f} s.\n"
        f"Adapter: {stage['path']}"
    )
    return 0


def finetune(command: str, *options: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `finetune COMMAND recipes/quickstart.yaml`, as a user would in the project's root."""
    words = [sys.executable, "-m", "finetune.cli.main", command, str(RECIPE), *options]
    return subprocess.run(words, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None)


def read_rows(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a messages file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def prompt_ids(messages: Sequence[dict[str, Any]], family: Any, tokenizer: Any) -> list[int]:
    """The ids of a conversation up to where its last answer begins, by the same encoder as in training."""
    from finetune.data.encode import encode_prompt
    from finetune.shapes import Dialog, Message

    turns = tuple(Message(turn["role"], turn["content"]) for turn in messages[:-1])
    return encode_prompt(Dialog(turns), family, tokenizer)


def generate(model: Any, prompts: Sequence[list[int]], tokenizer: Any, pad: int, stops: list[int]) -> list[str]:
    """Greedy answers, padded on the left in batches of like lengths. One that was cut off ends in an ellipsis."""
    import torch

    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), ROWS):
        chosen = order[at : at + ROWS]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in chosen], device=model.device)
        made = model.generate(
            input_ids=ids,
            attention_mask=(ids != pad).long(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=pad,
        )
        for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in stops), None)
            answers[i] = tokenizer.decode(row[:end]).strip() + ("" if end is not None else " …")
    return answers


def exact(answers: Sequence[str], expected: Sequence[str]) -> str:
    return share(sum(answer == right for answer, right in zip(answers, expected, strict=True)), len(expected))


def within(answers: Sequence[str], expected: Sequence[str]) -> str:
    return share(sum(right in answer for answer, right in zip(answers, expected, strict=True)), len(expected))


def share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})"


def print_table(questions: Sequence[str], before: Sequence[str], after: Sequence[str], expected: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Questions that were never trained on", show_lines=True)
    for heading in ("question", "before", "after", "expected"):
        table.add_column(heading, overflow="fold")
    rows = list(zip(questions, before, after, expected, strict=True))
    stories = [row for row in rows if "\n\n" in row[0]]
    for row in [*[row for row in rows if row not in stories][: SHOWN - 1], stories[0]]:
        table.add_row(*(cell.replace("\n\n", "\n").replace("\n", " / ") for cell in row))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())

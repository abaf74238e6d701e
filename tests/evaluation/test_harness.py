"""The harness' own Hugging Face model on the same weights is the oracle: log-likelihoods and answers agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.slow  # the harness alone takes most of it to import

CHOICES = """\
task: our_choices
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITING = """\
task: our_writing
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
READING = """\
task: our_reading
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
LONG = "The llama lived on a hill and liked to sing in the rain. " * 14
ROWS = [
    {
        "question": f"What is {n}? " + LONG[: 40 * n],
        "choices": [f"It is {n}.", "No", "Rain in the hills"],
        "right": n % 3,
        "text": f"{LONG[: 150 * n]} It is {n}.",
    }
    for n in range(7)
]


@pytest.fixture(scope="module")
def run(lab) -> Path:
    return lab.run("sft")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder of task files that read a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("choices", CHOICES), ("writing", WRITING), ("reading", READING)):
        (folder / f"{name}.yaml").write_text(text.replace("FILE", str(data)))
    return folder


@pytest.fixture(scope="module")
def oracle(run):
    """HFLM, padded, on transformers' model with peft's adapter."""
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run).eval()
    model.generation_config = GenerationConfig.from_pretrained(run)  # with the stop tokens of the run's template
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(run), batch_size=4)


@pytest.fixture(scope="module")
def ours(run):
    from transformers import AutoTokenizer

    from finetune.chat.model import open_chat
    from finetune.evaluation.harness import RunOfHarness

    def quiet(line):
        pass

    return RunOfHarness(open_chat({"sft": run}, say=quiet), "sft", AutoTokenizer.from_pretrained(run), quiet)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def test_log_likelihoods_are_those_of_transformers(ours, oracle):
    """Shared questions, an empty context, a space at its end, and one that is longer than the model's positions."""
    asked = [(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]
    asked += [("", "It is so."), ("What is it? ", "It is."), (LONG * 3, " It is.")]
    found = ours.loglikelihood(requests("loglikelihood", asked))
    wanted = oracle.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_some_continuation_is_the_likeliest(ours, oracle):
    """Of the answer that it would write itself both say that it is."""
    (text,) = ours.generate_until(requests("generate_until", [("What is 1?", {"max_gen_toks": 1})]))
    (found,) = ours.loglikelihood(requests("loglikelihood", [("What is 1?", text)]))
    (wanted,) = oracle.loglikelihood(requests("loglikelihood", [("What is 1?", text)]), disable_tqdm=True)
    assert found[1] == wanted[1]


def test_texts_longer_than_the_model_are_read_in_windows(ours, oracle):
    texts = [(row["text"],) for row in ROWS]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    wanted = oracle.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert len(ours.tok_encode(texts[-1][0])) > ours.max_length
    assert found == pytest.approx(wanted, rel=1e-5)


def test_answers_are_those_of_transformers(ours, oracle):
    kinds = [{"max_gen_toks": 12}, {"until": [".", "9"], "max_gen_toks": 20}]
    asked = [(row["question"], dict(kinds[index % 2])) for index, row in enumerate(ROWS)]
    found = ours.generate_until(requests("generate_until", asked))
    asked = [(row["question"], dict(kinds[index % 2])) for index, row in enumerate(ROWS)]
    wanted = oracle.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == wanted and any(found)


def test_a_task_of_ones_own_lands_in_the_run(run, oracle, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from finetune.evaluation.tasks import evaluate
    from finetune.plan.evaluations import read_evaluations

    names = ["our_choices", "our_writing", "our_reading"]
    found = evaluate(run, "lm_eval", lm_tasks=names, lm_path=tasks, say=print)
    wanted = simple_evaluate(oracle, tasks=names, task_manager=TaskManager(include_path=str(tasks)))["results"]
    for task, metric in (("our_choices", "acc"), ("our_choices", "acc_norm"), ("our_writing", "exact_match")):
        assert found.results["tasks"][task][metric]["value"] == wanted[task][f"{metric},none"]
    perplexity = found.results["tasks"]["our_reading"]["word_perplexity"]["value"]
    assert perplexity == pytest.approx(wanted["our_reading"]["word_perplexity,none"], rel=1e-4)
    accuracy = found.results["tasks"]["our_choices"]["acc"]
    error = wanted["our_choices"]["acc_stderr,none"]
    assert accuracy["high"] - accuracy["value"] == pytest.approx(1.96 * error)
    assert read_evaluations(run)[-1] == found and len(found.rows) == 3 * len(ROWS)


def test_a_task_that_is_not_there(run):
    from finetune.errors import InputError
    from finetune.evaluation.tasks import evaluate

    with pytest.raises(InputError, match="no task 'hellaswagg'"):
        evaluate(run, "lm_eval", lm_tasks=["hellaswagg"], say=print)


def test_the_chat_template_gives_the_tokens_of_training(ours):
    from finetune.shapes import Dialog, Message

    text = ours.apply_chat_template([{"role": "user", "content": "What is 1?"}])
    prompt = ours.chat.prompt(Dialog((Message("user", "What is 1?"),)))
    assert ours.tok_encode(text) == prompt.ids.tolist()

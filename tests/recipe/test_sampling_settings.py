"""What the stages that sample, and average, refuse: combinations that cannot work or would do nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import recipe_from_dict
from finetune.recipe.positions import read_yaml

PROMPTS = "prompts: [{path: p.jsonl}]"
RM = f"reward: rm, {PROMPTS}"


def recipe(stage: str, adapter: str = "{}") -> Any:
    text = (
        f"name: x\nmodel: {{base: org/model}}\nadapter: {adapter}\nstages:\n"
        "  sft: {kind: sft, data: [{path: d}]}\n  other: {kind: sft, data: [{path: d2}]}\n"
        "  rm: {kind: reward, data: [{path: d}]}\n  kept: {kind: reject, checker: {kind: json}, prompts: [{path: p}]}\n"
        f"  it: {{{stage}}}\n"
    )
    document = read_yaml(text)
    assert document.problems == []
    return recipe_from_dict(document.value).recipe


def told(stage: str, adapter: str = "{}") -> list[str]:
    with pytest.raises(RecipeError) as raised:
        recipe(stage, adapter)
    return [line.removeprefix("recipe: ").replace("stages.it", "") for line in str(raised.value).splitlines()]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (f"kind: reject, {PROMPTS}", ": needs exactly one of reward and checker; has none"),
        (f"kind: reject, {RM}, checker: {{kind: json}}", ": needs exactly one of reward and checker; has both"),
        (f"kind: ppo, checker: {{kind: json}}, safety: {{reward: rm}}, {PROMPTS}",
         ".safety: is a second reward model: it needs reward, the first"),
        (f"kind: ppo, {RM}, safety: {{reward: rm}}",
         ".safety.reward: is rm, as reward is: two reward models are combined"),
        (f"kind: ppo, {RM}, safety: rm", ".safety: expected a section or null; found text 'rm' (write {reward: rm})"),
        (f"kind: ppo, {RM}, safety: {{reward: sft, threshold: 1}}",
         ".safety.threshold: expected a number above 0 and below 1; found 1\n"
         ".safety.reward: stage sft (sft) gives an adapter that writes text, not a reward model "
         "(above, these do: rm)"),
        (f"kind: reject, checker: {{kind: nubmer}}, {PROMPTS}", ".checker.kind: unknown kind 'nubmer'; known are: "
         "number, "
         "regex, json, finished, function (did you mean 'number'?)"),
        (f"kind: reject, checker: {{colum: a}}, {PROMPTS}", ".checker.kind: missing key: section .checker, which "
         "begins "
         "here, needs it (number, regex, json, finished, function)"),
        (f"kind: reject, checker: {{kind: [json]}}, {PROMPTS}", ".checker.kind: unknown kind a list of 1; known are: "
         "number, regex, json, finished, function"),
        (f"kind: reject, checker: number, {PROMPTS}", ".checker: expected a section of kind number, regex, json, "
         "finished, "
         "function or null; found text 'number' (write {kind: number})"),
        (f"kind: reject, checker: regex, {PROMPTS}", ".checker: expected a section of kind number, regex, json, "
         "finished, "
         "function or null; found text 'regex' (write {kind: regex, pattern: …})"),
        (f"kind: reject, checker: {{kind: number, colum: a}}, {PROMPTS}",
         ".checker.colum: unknown key (did you mean 'column'?)"),
        (f"kind: reject, checker: {{kind: json, keys: [3]}}, {PROMPTS}",
         ".checker.keys[0]: expected text; found 3 (put it in quotes: '3')"),
        (f"kind: reject, checker: {{kind: regex, pattern: '('}}, {PROMPTS}",
         ".checker.pattern: is not a regular expression: missing ), unterminated subpattern at position 0"),
        (f"kind: reject, {RM}, temperature: 0", ".temperature: expected a number above 0 or a list of at least one "
         "entry, "
         "each a number above 0; found 0"),
        (f"kind: reject, {RM}, temperature: hot", ".temperature: expected a number above 0 or a list of at least one "
         "entry, each a number above 0; found text 'hot'"),
        (f"kind: reject, {RM}, temperature: [1, x]", ".temperature[1]: expected a number above 0; found text 'x'"),
        (f"kind: reject, {RM}, samples: 2, temperature: [1, 2, 3]",
         ".temperature: has 3 entries, but samples is 2: each answer takes one"),
        (f"kind: reject, {RM}, temperature: 1, temperature_search: {{candidates: [1, 2]}}",
         ".temperature_search: finds the temperature: remove temperature"),
        (f"kind: reject, {RM}, temperature_search: {{candidates: [1]}}", ".temperature_search.candidates: expected "
         "a list "
         "of at least 2 entries, each a number above 0; found a list of 1"),
        (f"kind: reject, {RM}, keep: above", ".keep: above needs threshold, the least score"),
        (f"kind: reject, {RM}, keep: pairs, samples: 1", ".samples: 1 makes no pairs: keep pairs needs two answers "
         "or more"),
        (f"kind: reject, {RM}, keep: pairs, best_n: 2", ".best_n: belongs to keep: best; keep: pairs does not read it"),
        (f"kind: reject, {RM}, min_gap: 0.1", ".min_gap: belongs to keep: pairs; keep: best does not read it"),
        (f"kind: reject, {RM}, samples: 4, best_n: 5", ".best_n: 5 is more than samples 4, the answers of a prompt"),
        (f"kind: reject, {RM}, policy: rm", ".policy: stage rm (reward) gives a reward model, not an adapter that "
         "writes "
         "text (above, these do: sft, other)"),
        (f"kind: reject, {RM}, earlier: [sft]", ".earlier[0]: stage sft (sft) gives an adapter that writes text, not a "
         "reject stage's samples (above, these do: kept)"),
        (f"kind: reject, {RM}, start_from: sft", ".start_from: unknown key (did you mean 'policy'?)"),
        (f"kind: reject, {RM}, data: []", ".data: unknown key (did you mean 'prompts'?)"),
        (f"kind: reject, {RM}, num_generations: 4", ".num_generations: unknown key (did you mean 'samples'?)"),
        (f"kind: ppo, {RM}, beta: 0.1", ".beta: unknown key (did you mean 'kl'?)"),
        (f"kind: ppo, {RM}, lam: 0.9", ".lam: unknown key (did you mean 'gae_lambda'?)"),
        (f"kind: ppo, {RM}, response_length: 9", ".response_length: unknown key (did you mean 'max_new_tokens'?)"),
        (f"kind: ppo, {RM}, lr: 1", ".lr: unknown key (did you mean 'learning_rate' of .train?)"),
        (f"kind: ppo, {RM}, rollouts: 500, samples: 3", ".rollouts: 500 has to be a multiple of samples 3"),
        (f"kind: ppo, {RM}, rollouts: 513, samples: 3", ": train.batch_size 64 has to be a multiple of samples 3: the "
         "answers to a prompt stay together"),
        (f"kind: ppo, {RM}, rollouts: 32", ": train.batch_size 64 is more than rollouts 32, the answers of an "
         "iteration"),
        (f"kind: ppo, {RM}, rollouts: 1, train: {{batch_size: 1, micro_batch_size: 1}}",
         ".rollouts: 1 leaves nothing to whiten: every score would be 0; more, or whiten_scores false"),
        (f"kind: ppo, {RM}, kl: 0, target_kl: 3", ".target_kl: adapts kl by factors: kl has to be above 0"),
        (f"kind: ppo, {RM}, target_kl: 100", ".target_kl: 100 is not below max_kl 100, where training stops"),
        (f"kind: ppo, {RM}, sample_every: 2, held_out: {{fraction: 0}}",
         ".sample_every: needs held-out prompts to answer; held_out.fraction is 0"),
        (f"kind: ppo, {RM}, train: {{max_steps: 3}}", ".train.max_steps: is not read by ppo: it has iterations"),
        (f"kind: ppo, {RM}, train: {{eval_every: 3}}", ".train.eval_every: is not read by ppo: it has sample_every"),
        (f"kind: ppo, {RM}, train: {{early_stop: 3}}", ".train.early_stop: is not read by ppo: it has max_kl, "
         "iterations"),
        (f"kind: ppo, {RM}, iterations: 3, train: {{epochs: 2}}", ".train.epochs: is not read where iterations is "
         "given"),
        (f"kind: ppo, {RM}, value_learning_rate: fast",
         ".value_learning_rate: expected auto or a number above 0; found text 'fast'"),
        (f"kind: grpo, {RM}, samples: 1", ".samples: expected a whole number of at least 2; found 1"),
        (f"kind: grpo, {RM}, train: {{batch_size: 12}}", ".train.batch_size: 12 has to be a multiple of samples 8"),
        (f"kind: grpo, {RM}, train: {{layout: ragged}}",
         ".train.layout: ragged belongs to engine finetune: TRL computes padded rows here"),
        (f"kind: rloo, {RM}, train: {{micro_batch_size: 3}}", ": train.batch_size 16 has to be a multiple of "
         "micro_batch_size 3: TRL adds up whole micro-batches"),
        (f"kind: rloo, {RM}, train: {{eval_every: 3}}",
         ".train.eval_every: is not read here: TRL's trainer is run without held-out rows"),
        ("kind: average, of: [sft]", ".of: expected a list of at least 2 entries, each text; found a list of 1"),
        ("kind: average, of: [sft, sft]", ".of: names sft twice: give it more weight with weights"),
        ("kind: average, of: [sft, rm]", ".of: rm is a reward model and sft is not: they have no mean"),
        ("kind: average, of: [sft, kept]", ".of[1]: stage kept (reject) gives a reject stage's samples, not an adapter "
         "(above, these do: sft, other, rm)"),
        ("kind: average, of: [sft, other], weights: [1]", ".weights: has 1 entries, but there are 2 adapters"),
        ("kind: average, of: [sft, other], weights: [1, 0]", ".weights[1]: expected a number above 0; found 0"),
        ("kind: average, adapters: [sft, other]", ".of: missing key: section , which begins here, needs it (a list "
         "of at "
         "least 2 entries, each text)\n.adapters: unknown key (did you mean 'of'?)"),
    ],
)  # fmt: skip
def test_what_is_refused(stage: str, message: str) -> None:
    assert told(stage) == message.split("\n")


def test_trls_stages_need_an_adapter_that_it_can_train() -> None:
    [message] = told(f"kind: grpo, {RM}, train: {{micro_batch_size: 8}}", "{init: pissa}")[:1]
    assert "init pissa" in message and message.startswith(": is trained by TRL, but adapter.init")


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("rejection_sampling", "reject"),
        ("best-of-n", "reject"),
        ("RM", "reward"),
        ("merge", "average"),
        ("pppo", "ppo"),
    ],
)
def test_kinds_by_other_names(kind: str, meant: str) -> None:
    [message] = told(f"kind: {kind}, {RM}")
    assert message.endswith(f"(did you mean '{meant}'?)")


def test_a_section_that_names_some_keys_keeps_the_stages_defaults_of_the_others() -> None:
    ppo = recipe(f"kind: ppo, {RM}, train: {{max_grad_norm: 2}}, held_out: {{fraction: 0.1}}").stages["it"]
    assert (ppo.train.batch_size, ppo.train.betas, ppo.train.max_grad_norm) == (64, (0.9, 0.95), 2.0)
    assert (ppo.held_out.max_rows, ppo.held_out.fraction) == (64, 0.1)
    assert recipe(f"kind: ppo, {RM}, train: {{epochs: 3, betas: [0.8, 0.9]}}").stages["it"].train.epochs == 3.0
    assert recipe(f"kind: grpo, {RM}, train: {{max_steps: 3}}").stages["it"].train.epochs == 1.0
    assert recipe("kind: sft, data: [{path: d}], train: {max_steps: 3}").stages["it"].train.epochs == 2.0


@pytest.mark.parametrize(
    "stage",
    [
        f"kind: reject, {RM}, keep: pairs, min_gap: 0.5, samples: 2, temperature: [0.5, 1.5]",
        f"kind: reject, {RM}, keep: above, threshold: 0.5, temperature_search: {{candidates: [0.5, 1]}}",
        f"kind: reject, {RM}, samples: 1, best_n: 3, earlier: [kept]",
        f"kind: ppo, {RM}, target_kl: 3, safety: {{reward: ./elsewhere}}, samples: 4",
        f"kind: ppo, checker: {{kind: regex, pattern: a}}, {PROMPTS}, iterations: 3, whiten_scores: false",
        f"kind: grpo, checker: {{kind: function, name: f, version: 2}}, {PROMPTS}, samples: 4",
        "kind: average, of: [sft, other, ./elsewhere], weights: [1, 2, 3], rank: 8",
    ],
)
def test_what_is_taken(stage: str) -> None:
    loaded = recipe(stage)
    wanted = read_yaml(f"{{{stage}}}").value
    found = json.loads(loaded.stages["it"].model_dump_json(exclude_unset=True))
    assert {key: found[key] for key in wanted} == wanted

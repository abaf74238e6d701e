"""LLaMA-Factory's stage ppo, whose loop is TRL's of 2023: how much is sampled, the penalty, the reward model."""

from __future__ import annotations

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft

_SAMPLING = (("temperature", 0.95), ("top_p", 0.7))
"""Defaults of its GeneratingArguments, which differ from ours."""


def fill_ppo(draft: Draft, theirs: Section) -> None:
    """After the loop: batch_size is an update's answers there as here, rollouts ppo_buffer_size times that."""
    _reward(draft, theirs)
    for key, default in _SAMPLING:
        if (given := theirs.number(key)) is not None:
            draft.carry(theirs, key, draft.of_stage(key), float(given))
        else:
            draft.default(draft.of_stage(key), default, key)
    for key, default in (("top_k", 50), ("max_new_tokens", 1024)):
        if (whole := theirs.whole(key)) is not None:
            draft.carry(theirs, key, draft.of_stage(key), whole)
        else:
            draft.default(draft.of_stage(key), default, key)
    train = draft.recipe["stages"][draft.stage]["train"]
    buffer = theirs.whole("ppo_buffer_size") or 1
    path = draft.of_stage("rollouts")
    draft.put(path, train["batch_size"] * buffer, f"answers of an iteration: batch_size x ppo_buffer_size {buffer}")
    draft.also(theirs, "ppo_buffer_size", path)
    if (passes := theirs.whole("ppo_epochs")) is not None:
        draft.carry(theirs, "ppo_epochs", draft.of_stage("passes"), passes)
    else:
        draft.default(draft.of_stage("passes"), 4, "ppo_epochs")
    draft.put(draft.of_stage("kl"), 0.2, "where TRL's adaptive penalty began, which LLaMA-Factory uses")
    target = theirs.number("ppo_target")
    if target is not None:
        draft.carry(theirs, "ppo_target", draft.of_stage("target_kl"), float(target))
    else:
        draft.default(draft.of_stage("target_kl"), 6.0, "ppo_target")
    whiten = theirs.flag("ppo_score_norm")
    path = draft.of_stage("whiten_scores")
    if whiten is None:
        draft.default(path, False, "ppo_score_norm")
    else:
        draft.carry(theirs, "ppo_score_norm", path, whiten)
    if theirs.flag("ppo_whiten_rewards"):
        note = "rewards of single tokens are not whitened here, but whiten_scores and whiten_advantages (docs/ppo.md)"
        theirs.decide("ppo_whiten_rewards", note)
    if "max_steps" in train:  # where TRL's PPO loop goes round once
        del train["max_steps"], train["epochs"]
        draft.carry(theirs, "max_steps", draft.of_stage("iterations"), theirs.whole("max_steps"))
        theirs.tell("num_train_epochs", Fate.LEFT_OUT, "max_steps is given, and counts")
    theirs.tell("repetition_penalty", Fate.LEFT_OUT, "answers are sampled as they are")


def _reward(draft: Draft, theirs: Section) -> None:
    key, path = "reward_model", draft.of_stage("reward")
    given = theirs.text(key)
    if given is None:
        theirs.account.problem(theirs.at(key), "stage: ppo needs reward_model", "the tool needs it too")
        return
    written, _ = draft.places.folder(given)
    note = (
        "its reward models are read by it alone: train one here, a stage of kind reward above this one, and write its "
        "name; or an adapter folder of `finetune reward`"
    )
    draft.carry(theirs, key, path, written if "/" in written else f"./{written}", note, Fate.DECIDE)
    for more in ("reward_model_type", "reward_model_adapters", "reward_model_quantization_bit"):
        theirs.tell(more, Fate.LEFT_OUT, "reward model and policy are adapters on one base here")

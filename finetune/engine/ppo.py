"""PPO's iterations: sample, score, compute what the update compares with, then hand out minibatches.

One iteration samples `rollouts` answers with the policy as it is, scores them, and computes log-probabilities (policy,
reference) and values in the very micro-batches that the first pass of the update uses, by the same forward: so the
first minibatch's ratio is exactly 1, and the first iteration's KL exactly 0. Both are checked.

Letters: N answer tokens of a batch, B answers, T tokens of a layout.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.answers import answer_text
from finetune.data.mix import generator
from finetune.data.prepare_prompts import Prompt
from finetune.data.tokenizer import Tokenizer
from finetune.engine import loop
from finetune.engine.batches import TokenBatch, micro_batches
from finetune.engine.ppo_rows import Sampled, cut_pass
from finetune.engine.ppo_update import PpoBatch
from finetune.engine.reference import reference_active
from finetune.engine.rewards import Answer, Judge
from finetune.engine.token_logprobs import Hidden
from finetune.errors import ProofError
from finetune.families.base import Family
from finetune.model.actor_critic import VALUE, ActorCritic
from finetune.model.adapter import ADAPTER
from finetune.model.generation import Generated, Sampling, generate
from finetune.numerics.logprobs import logprobs, logprobs_and_entropies
from finetune.numerics.ppo import (
    SMALL,
    adapted_kl,
    discounted_returns,
    explained_variance,
    gae,
    kl_k3,
    shaped_scores,
    token_rewards,
    whitened_advantages,
)
from finetune.recipe.sampling_stages import PpoStage


@dataclass
class _Rollouts:
    """An iteration's answers and, for each, [its tokens] of what the update needs."""

    rows: Sampled
    old_logps: list[Tensor]
    old_values: list[Tensor]
    advantages: list[Tensor]
    targets: list[Tensor]


@dataclass(frozen=True)
class Measured:
    """What sampled answers come to. scores: as the judge gives them; kl: of an answer to the reference, in nats."""

    score: float
    score_deviation: float
    kl: float
    kl_k3: float
    answer_tokens: float
    finished: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """For the log: `reward` is the judge's mean score, before whitening and penalties."""
        named = {"reward": self.score, "reward_std": self.score_deviation, "kl": self.kl, "kl_k3": self.kl_k3}
        named |= {"answer_tokens": self.answer_tokens, "finished": self.finished, **self.parts}
        return {prefix + name: value for name, value in named.items()}


class Iterations:
    """loop.Cycle of PPO. keep_samples(step, answers, scores): gets what the held-out prompts were answered."""

    def __init__(
        self,
        stage: PpoStage,
        model: ActorCritic,
        judge: Judge,
        train: Sequence[Prompt],
        held_out: Sequence[Prompt],
        *,
        family: Family,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        seed: int,
        device: torch.device,
        compute: torch.dtype,
        hidden: Hidden,
        keep_samples: Callable[[int, Sequence[Answer], NDArray[np.float64]], None],
    ) -> None:
        self.stage, self.model, self.judge = stage, model, judge
        self.train_prompts, self.held_out_prompts = train, held_out
        self.family, self.tokenizer, self.stop_ids, self.seed = family, tokenizer, stop_ids, seed
        self.device, self.compute, self.hidden = device, compute, hidden
        self.keep_samples = keep_samples
        self.base = model.adapted.get_base_model()
        self.minibatches = math.ceil(stage.rollouts / stage.train.batch_size)
        self.kl_weight = stage.kl
        self._rollouts: _Rollouts | None = None
        self._cuts: list[list[list[list[int]]]] = []

    @property
    def steps(self) -> int:
        return self.stage.passes * self.minibatches

    @property
    def prompts_each(self) -> int:
        return self.stage.rollouts // self.stage.samples

    def iterations(self) -> int:
        """How many the stage has: as it says, or train.epochs passes over the prompts."""
        wanted = self.stage.train.epochs * len(self.train_prompts) / self.prompts_each
        return self.stage.iterations or max(1, math.ceil(wanted - 1e-9))

    def state(self) -> dict[str, Any]:
        return {"kl_weight": self.kl_weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kl_weight = float(state["kl_weight"])

    def begin(self, step: int) -> loop.Begun:
        """Sample and score an iteration's answers; stop where the KL has run away."""
        iteration = step // self.steps
        self.model.act_as(ADAPTER)
        extra = self.measure_held_out(step) if iteration % self.stage.sample_every == 0 else {}
        began = time.monotonic()
        answers, tokens = self.sample(self._prompts_of(iteration), self.stage.samples, f"iteration {iteration}")
        sampled = time.monotonic()
        scores = self.judge(answers)
        scored = time.monotonic()
        rows = Sampled(answers, self.stage.samples)
        self._cuts = [
            cut_pass(rows, self.stage.train, generator(self.seed, "ppo pass", step, number))
            for number in range(self.stage.passes)
        ]
        batches = [cut for minibatch in self._cuts[0] for cut in minibatch]
        logps, reference, values, entropy = self._compare(rows, batches, with_values=True)
        compared = time.monotonic()
        measured = self._measured(answers, scores.total, scores.parts, logps, reference)
        if iteration == 0:
            self._check_reference(logps, reference)
        if measured.kl > self.stage.max_kl:
            reason = (
                f"the mean KL of an answer to the reference is {measured.kl:.1f} nats, over max_kl "
                f"{self.stage.max_kl:g}; the weights of the iteration before are kept. A larger kl or a lower "
                "learning rate keeps the policy near"
            )
            return loop.Begun(measured.metrics(), reason)
        metrics = {**extra, **measured.metrics(), "entropy": entropy, "kl_weight": self.kl_weight}
        metrics |= self._learn_from(rows, scores.total, logps, reference, values, first=iteration == 0)
        if self.stage.target_kl is not None:
            self.kl_weight = adapted_kl(self.kl_weight, measured.kl, self.stage.target_kl)
        seconds = {"sampling": sampled - began, "scoring": scored - sampled, "comparing": compared - scored}
        metrics |= {f"seconds_{name}": round(value, 4) for name, value in seconds.items()}
        # Of the answers' tokens, in each phase; the update's own rate is in every step's tokens_per_second.
        metrics |= {f"speed_{name}": round(tokens / max(value, 1e-9), 1) for name, value in seconds.items()}
        return loop.Begun(metrics)

    def step_batches(self, step: int) -> list[PpoBatch]:
        assert self._rollouts is not None, "begin comes before the cycle's steps"
        number, minibatch = divmod(step % self.steps, self.minibatches)
        found = self._rollouts

        def of(values: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
            return torch.cat([values[row] for row in rows])

        return [
            PpoBatch(
                found.rows.collate(rows, self.stage.train.layout),
                of(found.old_logps, rows),
                of(found.old_values, rows),
                of(found.advantages, rows),
                of(found.targets, rows),
                step % self.steps == 0,
            )
            for rows in self._cuts[number][minibatch]
        ]

    def name_rows(self, rows: Sequence[int]) -> str:
        assert self._rollouts is not None
        names = dict.fromkeys(str(self._rollouts.rows.answers[row].prompt.origin) for row in rows[:8])
        return f"answers to {', '.join(names)}"

    def sample(self, prompts: Sequence[Prompt], samples: int, purpose: str) -> tuple[list[Answer], int]:
        """Answers of the active adapter, prompt by prompt, and how many tokens they have."""
        stage = self.stage
        sampling = Sampling(
            (stage.temperature,), stage.max_new_tokens, self.stop_ids, stage.top_p, stage.top_k, self.seed
        )
        with loop.autocast(self.device, self.compute):
            generated = generate(
                self.base,
                [prompt.ids for prompt in prompts],
                samples,
                sampling,
                keys=[_key(prompt.key, place, purpose) for place, prompt in enumerate(prompts)],
                rows_at_once=stage.rows_at_once,
            )
        answers = [
            Answer(prompt, one.ids, self._text(prompt, one), one.finished)
            for prompt, many in zip(prompts, generated, strict=True)
            for one in many
        ]
        return answers, sum(len(answer.ids) for answer in answers)

    def measure_held_out(self, step: int) -> dict[str, float]:
        """Answer the held-out prompts, always with the same draws, and keep what was said."""
        if not self.held_out_prompts:
            return {}
        self.model.act_as(ADAPTER)
        answers, _ = self.sample(self.held_out_prompts, 1, "held out")
        scores = self.judge(answers)
        rows = Sampled(answers, 1)
        cuts = micro_batches(range(len(answers)), rows.lengths, 2 * self.stage.train.micro_batch_size, balance=False)
        logps, reference, _, _ = self._compare(rows, cuts, with_values=False)
        self.keep_samples(step, answers, scores.total)
        return self._measured(answers, scores.total, scores.parts, logps, reference).metrics("held_out_")

    def _text(self, prompt: Prompt, one: Generated) -> str:
        return answer_text(prompt, one.ids, one.finished, self.family, self.tokenizer)

    def _prompts_of(self, iteration: int) -> list[Prompt]:
        """The iteration's prompts: passes over all of them, each in an order of its own."""
        count = len(self.train_prompts)
        places = range(iteration * self.prompts_each, (iteration + 1) * self.prompts_each)
        epochs = range(places[0] // count, places[-1] // count + 1)
        orders = {epoch: generator(self.seed, "ppo prompts", epoch).permutation(count) for epoch in epochs}
        return [self.train_prompts[int(orders[place // count][place % count])] for place in places]

    @torch.no_grad()
    def _compare(
        self, rows: Sampled, batches: Sequence[Sequence[int]], *, with_values: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], float]:
        """For each answer [its tokens]: log-probabilities of policy and reference, and values; and the policy's mean
        entropy in nats. One adapter after the other over all batches: switching costs more than memory here."""
        decoder, head = self.base.model, self.base.lm_head
        collated = [rows.collate(batch, self.stage.train.layout).to(self.device) for batch in batches]
        entropy_sum, count = 0.0, 0

        def over_all(compute: Callable[[TokenBatch], Tensor]) -> list[Tensor]:
            found: list[Tensor] = [torch.empty(0)] * len(rows)
            for batch in collated:
                with loop.autocast(self.device, self.compute):
                    values_N = compute(batch).float().cpu()
                counts = torch.bincount(batch.row_N, minlength=len(batch.rows)).tolist()
                for row, part in zip(batch.rows, values_N.split(counts), strict=True):
                    found[row] = part
            return found

        def of_policy(batch: TokenBatch) -> Tensor:
            nonlocal entropy_sum, count
            hidden_ND = self.hidden(decoder, batch.ids_T, batch.layout).index_select(0, batch.predict_N)
            logps_N, entropy_N = logprobs_and_entropies(hidden_ND, batch.labels_N, head)
            entropy_sum += entropy_N.sum().item()
            count += len(batch.labels_N)
            return logps_N

        def of_reference(batch: TokenBatch) -> Tensor:
            hidden_ND = self.hidden(decoder, batch.ids_T, batch.layout).index_select(0, batch.predict_N)
            return logprobs(hidden_ND, batch.labels_N, head)

        def of_value(batch: TokenBatch) -> Tensor:
            return self.model.values(self.hidden(decoder, batch.ids_T, batch.layout), batch.predict_N)

        self.model.act_as(ADAPTER)
        logps = over_all(of_policy)
        with reference_active(self.model.adapted):
            reference = over_all(of_reference)
        values: list[Tensor] = []
        if with_values:
            self.model.act_as(VALUE)
            values = over_all(of_value)
        self.model.act_as(ADAPTER)
        return logps, reference, values, entropy_sum / max(count, 1)

    def _measured(
        self,
        answers: Sequence[Answer],
        scores: NDArray[np.float64],
        parts: Mapping[str, NDArray[np.float64]],
        logps: Sequence[Tensor],
        reference: Sequence[Tensor],
    ) -> Measured:
        ratios = [policy - frozen for policy, frozen in zip(logps, reference, strict=True)]
        return Measured(
            score=float(scores.mean()),
            score_deviation=float(scores.std()),
            kl=float(np.mean([ratio.sum().item() for ratio in ratios])),
            kl_k3=float(np.mean([kl_k3(ratio).sum().item() for ratio in ratios])),
            answer_tokens=float(np.mean([len(answer.ids) for answer in answers])),
            finished=float(np.mean([answer.finished for answer in answers])),
            parts={f"reward_{name}": float(part.mean()) for name, part in parts.items()} if len(parts) > 1 else {},
        )

    def _check_reference(self, logps: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Before anything is learnt the policy is its own reference. Raises ProofError."""
        difference = max((a - b).abs().max().item() for a, b in zip(logps, reference, strict=True) if len(a))
        if difference != 0.0:
            raise ProofError(
                f"before training, policy and reference differ by {difference:.3g} nats in a token's log-probability, "
                "where 0 is right: the first KL would not be 0. Was the adapter changed as it was loaded?"
            )

    def _learn_from(
        self,
        rows: Sampled,
        scores: NDArray[np.float64],
        logps: list[Tensor],
        reference: list[Tensor],
        values: list[Tensor],
        *,
        first: bool,
    ) -> dict[str, float]:
        """Rewards, advantages and the value's targets of the iteration's answers. Returns what is worth logging."""
        stage = self.stage
        scores_B = torch.from_numpy(scores).float()
        finished_B = torch.tensor([answer.finished for answer in rows.answers])
        earned_B = shaped_scores(
            scores_B,
            finished_B,
            whiten=stage.whiten_scores,
            clip=stage.clip_score,
            no_stop_penalty=stage.no_stop_penalty,
        )
        if first and stage.reward is not None and stage.whiten_scores:
            # The value model comes from the reward model and speaks its scale; what is earned is whitened.
            mean, deviation = scores_B.mean().item(), scores_B.std(correction=0).item() + SMALL
            if deviation > math.sqrt(SMALL):
                self.model.rescale_values(mean, deviation)
                values = [(value - mean) / deviation for value in values]
        lengths = [len(answer.ids) for answer in rows.answers]
        rewards_N = token_rewards(earned_B, torch.cat(logps) - torch.cat(reference), self.kl_weight, lengths)
        values_N = torch.cat(values)
        advantages_N, targets_N = gae(rewards_N, values_N, lengths, gamma=stage.gamma, lam=stage.gae_lambda)
        returns_N = discounted_returns(rewards_N, lengths, stage.gamma)
        used_N = whitened_advantages(advantages_N, returns_N) if stage.whiten_advantages else advantages_N
        self._rollouts = _Rollouts(
            rows, logps, list(values_N.split(lengths)), list(used_N.split(lengths)), list(targets_N.split(lengths))
        )
        return {
            "earned": earned_B.mean().item(),
            "return": returns_N.mean().item(),
            "advantage_std": advantages_N.std(correction=0).item(),
            "explained_variance": explained_variance(values_N, returns_N),
        }


def _key(prompt_key: int, place: int, purpose: str) -> int:
    """Draws differ from iteration to iteration, and where a prompt comes twice in one."""
    text = f"{prompt_key} {place} {purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

"""What TRL's reward, DPO, KTO, ORPO and CPO commands say of their loss."""

from __future__ import annotations

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.loop import kto_weights

_LOSSES = ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm")


def reward(draft: Draft, theirs: Section) -> None:
    """trl reward. Rows over max_length are left out there as here."""
    if (weight := theirs.number("center_rewards_coefficient")) is not None:
        draft.carry(theirs, "center_rewards_coefficient", draft.of_stage("centring"), float(weight))


def kto(draft: Draft, theirs: Section) -> None:
    draft.put(draft.of_stage("loss"), "kto", "trl kto")
    losses = theirs.words("loss_type")
    if losses == ["kto"]:
        theirs.tell("loss_type", Fate.CARRIED, "→ loss: kto")
    elif losses:
        theirs.decide("loss_type", f"{', '.join(losses)} is not here: loss kto stands in its place")
    _beta(draft, theirs)
    kto_weights(draft, theirs, "desirable_weight", "undesirable_weight")


def preference(draft: Draft, theirs: Section, kind: str) -> None:
    """trl dpo, orpo and cpo (whose loss simpo is the one that is imported)."""
    path = draft.of_stage("loss")
    if kind == "orpo":
        draft.put(path, "orpo", "trl orpo")
    elif kind == "cpo":
        _cpo(draft, theirs)
    else:
        _dpo(draft, theirs)
    _beta(draft, theirs)
    loss = draft.recipe["stages"][draft.stage]["loss"]
    _smoothing(draft, theirs, loss)
    if (weight := theirs.number("rpo_alpha")) is not None:
        draft.carry(theirs, "rpo_alpha", draft.of_stage("nll_weight"), float(weight))
    if theirs.flag("precompute_ref_log_probs") and loss not in ("simpo", "orpo"):
        draft.carry(theirs, "precompute_ref_log_probs", draft.of_stage("reference"), "ahead")


def _dpo(draft: Draft, theirs: Section) -> None:
    path = draft.of_stage("loss")
    losses = theirs.words("loss_type")
    weights = theirs.raw("loss_weights") or [1.0] * len(losses)
    nll = None
    if isinstance(weights, list) and len(weights) == len(losses) == 2 and "sft" in losses:
        place = losses.index("sft")
        if weights[1 - place]:
            nll = float(weights[place]) / float(weights[1 - place])
            losses = [losses[1 - place]]
    if not losses:
        draft.default(path, "sigmoid", "loss_type")
    elif len(losses) == 1 and losses[0] in _LOSSES:
        draft.carry(theirs, "loss_type", path, losses[0])
        if nll is not None:
            draft.put(draft.of_stage("nll_weight"), nll, "the weight of sft in loss_weights, the other's being 1")
            theirs.tell("loss_weights", Fate.CARRIED, "→ nll_weight")
    else:
        note = f"of these losses a recipe has one: {', '.join(_LOSSES)}, and nll_weight for sft; sigmoid stands here"
        draft.carry(theirs, "loss_type", path, "sigmoid", note, Fate.DECIDE)


def _cpo(draft: Draft, theirs: Section) -> None:
    path = draft.of_stage("loss")
    loss = next(iter(theirs.words("loss_type")), "sigmoid")
    if loss == "simpo":
        draft.carry(theirs, "loss_type", path, "simpo")
        margin = theirs.number("simpo_gamma")
        if margin is None:
            draft.default(draft.of_stage("simpo_margin"), 0.5, "simpo_gamma")
        else:
            draft.carry(theirs, "simpo_gamma", draft.of_stage("simpo_margin"), float(margin))
    else:
        draft.put(path, "sigmoid", f"of CPO's losses only simpo is here, not {loss}")
        theirs.decide("loss_type", "of CPO's losses only simpo is here; sigmoid is DPO's, with a reference")
        theirs.tell("simpo_gamma", Fate.LEFT_OUT, "loss_type simpo reads it")
        draft.account.decide(
            f"loss: of CPO's losses only simpo is here, not {loss}: sigmoid is DPO's, with a reference"
        )
    weight = theirs.number("cpo_alpha")
    if weight is None:
        draft.default(draft.of_stage("nll_weight"), 1.0, "cpo_alpha")
    else:
        draft.carry(theirs, "cpo_alpha", draft.of_stage("nll_weight"), float(weight))


def _beta(draft: Draft, theirs: Section) -> None:
    path = draft.of_stage("beta")
    if (beta := theirs.number("beta")) is not None:
        draft.carry(theirs, "beta", path, float(beta))
    else:
        draft.default(path, 0.1, "beta")


def _smoothing(draft: Draft, theirs: Section, loss: str) -> None:
    smoothing = theirs.number("label_smoothing")
    if smoothing is None:
        return
    if loss in ("robust", "sigmoid"):
        note = "TRL 1 reads it for robust only, older ones for sigmoid too, as here" if loss == "sigmoid" else ""
        draft.carry(theirs, "label_smoothing", draft.of_stage("label_smoothing"), float(smoothing), note)
    else:
        theirs.tell("label_smoothing", Fate.LEFT_OUT, f"loss {loss} does not read it")

"""Environment of the libraries underneath: no telemetry, chatter or spinning, unless the user has chosen otherwise."""

from __future__ import annotations

import logging
import os
import warnings

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets, trl (which pings at trainer start)
    "DO_NOT_TRACK": "1",  # the common opt-out, read by huggingface_hub and others
    "TRL_EXPERIMENTAL_SILENCE": "1",  # a warning on every import of trl.experimental
    "WANDB_ERROR_REPORTING": "false",  # wandb sends its own crashes to Sentry
    "WANDB_SILENT": "true",  # wandb's banner breaks the progress display
    # OpenMP threads that wait for each other sleep instead of spinning. On two cores that other work was using too,
    # training with two threads went from about 540 to 3,500 tokens/s by this alone.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def quiet_libraries() -> None:
    """Set each variable that is not set yet. Call it before the libraries are imported: they read it then."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def calm_libraries() -> None:
    """Silence, one by one, what the libraries say that is no news to a user; all else still comes through.

    Call it before they are imported.
    """
    # bitsandbytes, at import: it would fetch a kernel from the hub for its packed CPU product, which is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # bitsandbytes, at every int8 product in float32: how LLM.int8() works.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # bitsandbytes, on a CPU, at the first step: paged optimisers are ordinary ones there, with the same numbers.
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU.*")
    # transformers: its table of missing and unexpected weights, of which load_base makes an error. Not by the level:
    # from WARNING on, transformers 5.23 checks a tensor-parallel plan that nobody asked for, and says what that lacks.
    logging.getLogger("transformers.modeling_utils").addFilter(_no_load_report)
    # peft 0.21 asks transformers 5.23 by names that are about to go.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*", category=FutureWarning)
    # peft, when a pissa or olora adapter is saved: ours is converted to a plain one, as it advises.
    warnings.filterwarnings("ignore", message=".*changes the base weights of the model.*")


def _no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()

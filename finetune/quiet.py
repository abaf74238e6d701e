"""Telemetry and chatter of the libraries underneath, off unless the user has chosen otherwise."""

from __future__ import annotations

import os

_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets, trl (which pings at trainer start)
    "DO_NOT_TRACK": "1",  # the common opt-out, read by huggingface_hub and others
    "TRL_EXPERIMENTAL_SILENCE": "1",  # a warning on every import of trl.experimental
    "WANDB_ERROR_REPORTING": "false",  # wandb sends its own crashes to Sentry
    "WANDB_SILENT": "true",  # wandb's banner breaks the progress display
}


def quiet_libraries() -> None:
    """Set each variable that is not set yet. Call it before the libraries are imported: they read it then."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)

"""How every speed benchmark measures: a tool runs as a process of its own and appends one JSON line per optimiser step.

This process, which imports no torch, watches the file: the clock, CPU seconds (from /proc) and peak memory (of the
process, by the kernel) are taken in one way for all. It stays small on purpose: Linux counts the memory of the process
that starts another into the peak of the new one.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Watched:
    """One run. clock, cpu: seconds since its start at which each step's line came. load: the machine's 1-minute average
    when it began."""

    clock: list[float]
    cpu: list[float]
    losses: list[float]
    whole_seconds: float
    whole_cpu_seconds: float
    peak_mib: float
    load: float


def watch(
    command: Sequence[Any], find_lines: Callable[[], Path | None], log_file: Path, environment: dict[str, str]
) -> Watched:
    """Run a command to its end. find_lines: gives its file of step lines as soon as there is one.

    Raises SystemExit with the end of its output where it fails.
    """
    load = os.getloadavg()[0]
    seen: list[tuple[float, float]] = []
    text, file = "", None
    began = time.monotonic()
    with log_file.open("w") as log:
        process = subprocess.Popen([str(part) for part in command], env=environment, stdout=log, stderr=log)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if file is None and (found := find_lines()) is not None:
                file = found.open(encoding="utf-8")
            if file is not None:
                text += file.read()
                while len(seen) < text.count("\n"):
                    cpu = _cpu_seconds(process.pid) if not ended else seen[-1][1]
                    seen.append((time.monotonic() - began, cpu))
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.01)
    whole = time.monotonic() - began
    losses = [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]
    if process.returncode != 0 or len(losses) != len(seen) or not losses:
        end = log_file.read_text("utf-8")[-4000:]
        raise SystemExit(f"{' '.join(map(str, command))} failed ({process.returncode}):\n{end}")
    return Watched(
        clock=[at for at, _ in seen],
        cpu=[at for _, at in seen],
        losses=losses,
        whole_seconds=whole,
        whole_cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        load=load,
    )


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(threads: int) -> dict[str, str]:
    """Threads for every library that has its own; no network for anybody."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1"}


def shared(file: str) -> Path | None:
    """The folder with real text and tokenizers, where it is and has this file."""
    folder = Path(os.environ.get("FINETUNE_SHARED", BENCH.parent.parent.parent / "shared"))
    return folder if (folder / file).is_file() else None


def machine() -> dict[str, Any]:
    """What was measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "trl")},
    }

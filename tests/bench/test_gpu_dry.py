"""gpu.py is run for real only where there is a GPU; that it still starts and its checks hold is tested on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("gpu.py")


def run(*arguments, **environment):
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_dry_run_checks_and_measures(tmp_path):
    done = run("--dry", "--steps", 4, "--rank", 4, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found["checks"]) == 19
    assert all(check["measured"] <= check["limit"] for check in found["checks"])
    assert {(s["load_in"], s["recompute"]) for s in found["speeds"]} == {
        (load_in, recompute) for load_in in ("nf4", "bf16") for recompute in (False, True)
    }
    assert all(speed["tokens_per_second"] > 0 for speed in found["speeds"])
    for speed in found["speeds"]:  # every row is in the printed table
        assert f"| tiny | {speed['load_in']} | instructions | {'yes' if speed['recompute'] else 'no'} |" in done.stdout


def test_without_a_gpu_it_says_so():
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "no GPU" in done.stderr and "--dry" in done.stderr

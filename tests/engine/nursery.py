"""Runs the command line in forked children of a process that has imported everything, so that a start costs little.

Reads one JSON object a line: {"argv": […], "kill_at": n or null}. Each child is a process of its own that runs
`finetune ARGV`; with kill_at it sends itself SIGKILL at the n-th of its calls that make work durable (os.fsync before
it flushes, os.rename and os.replace before and after). Prints the child's pid when it starts, and when it has ended its
exit status as `subprocess` gives it (-9: killed).
"""

import json
import os
import signal
import sys
from importlib import import_module

from finetune.cli.main import main

KINDS = ("average", "dpo", "ppo", "reject", "reward", "sft")
# Imported here, so that children need not.
for name in ("accelerate", "bitsandbytes", *(f"finetune.stages.{kind}" for kind in KINDS)):
    import_module(name)


def kill_at(count):
    """SIGKILL at the count-th durable call: in the middle of a save, wherever that is."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if function is not fsync:
                calls += 1
                if calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    fsync = os.fsync
    os.fsync, os.rename, os.replace = counted(os.fsync), counted(os.rename), counted(os.replace)


for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request["kill_at"] is not None:
            kill_at(request["kill_at"])
        sys.argv = ["finetune", *request["argv"]]
        status = 1
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)

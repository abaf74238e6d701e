"""Runs the command line in forked children of a process that has imported everything and may reach this machine only.

Its one argument is JSON: a list of {"argv": […], "env": {…}, "kill": n, "stop": n}, all but the first optional. kill:
the child is sent SIGKILL when line n of metrics.jsonl is written, a moment later; stop: SIGTERM, at once. Prints the
exit statuses as JSON.
"""

import json
import os
import signal
import socket
import sys
import time
from importlib import import_module

from finetune.cli.main import main
from finetune.engine.tracking import MetricsFile

KINDS = ("average", "dpo", "ppo", "reject", "reward", "sft")
# Imported here, so that children need not.
for name in ("accelerate", "bitsandbytes", *(f"finetune.stages.{kind}" for kind in KINDS)):
    import_module(name)


def only_this_machine(connect):
    def checked(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            os.write(2, f"a socket to {address}\n".encode())
            os._exit(99)
        return connect(self, address)

    return checked


def signal_at(line, number, patience):
    """Send this process a signal after line `line` of metrics.jsonl. patience: seconds before it."""
    write, count = MetricsFile.write, 0

    def counted(self, metrics):
        nonlocal count
        write(self, metrics)
        count += self.path.name == "metrics.jsonl"
        if count == line:
            time.sleep(patience)
            os.kill(os.getpid(), number)

    MetricsFile.write = counted


socket.socket.connect = only_this_machine(socket.socket.connect)
codes = []
for request in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.environ.update(request.get("env", {}))
        if request.get("kill"):
            signal_at(request["kill"], signal.SIGKILL, patience=2.0)  # wandb writes what it has every second
        if request.get("stop"):
            signal_at(request["stop"], signal.SIGTERM, patience=0.0)
        os.dup2(2, 1)
        status = main(request["argv"])
        sys.stdout.flush()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    codes.append(os.waitstatus_to_exitcode(ended))
print(json.dumps(codes), flush=True)

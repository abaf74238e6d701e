"""`finetune serve`: runs behind an address of this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from finetune.cli.given_runs import existing, named, stages_of
from finetune.cli.options import runs_option, set_option
from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.chat.served import Served
    from finetune.chat.server import Server


@click.command()
@click.argument("targets", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--stage",
    "stages",
    metavar="NAME",
    multiple=True,
    help="Which stage, where RUN is a recipe; can be repeated. Default: all that write answers and are done.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Beyond loopback: a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option(
    "--pairs",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("preferences.jsonl"),
    show_default=True,
    help="Where the page appends what was preferred.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Longest answer in tokens, whatever a request asks for.",
)
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the runs had it.")
@set_option
@runs_option
def serve(
    targets: tuple[Path, ...],
    stages: tuple[str, ...],
    host: str,
    port: int,
    pairs: Path,
    max_new_tokens: int,
    base: str | None,
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Answer on this machine for finished RUNs of one base (folders, a recipe, or one merged folder).

    OpenAI's API under /v1, for any client of it, and a page at / to compare two of the models and to say which answer
    is better. For one person or a small team: beyond that `finetune export` prepares a run for vLLM.

    Bound to this machine alone unless --host says otherwise. Then every request needs a token: one is made and shown
    here, or is taken from the environment variable FINETUNE_SERVE_TOKEN.

    \b
    Example:
      finetune serve runs/chat/dpo-0123456789ab runs/chat/sft-0123456789ab
      finetune serve recipe.yaml --stage sft --stage dpo --port 8080
    """
    found = named(_folders(targets, stages, overrides, runs))
    if not pairs.parent.is_dir():
        raise InputError(f"--pairs: no such folder: {pairs.parent}")

    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.chat.doors import LEAST_TOKEN, TOKEN_VARIABLE, Door, is_loopback, new_token
    from finetune.chat.model import open_chat
    from finetune.chat.served import Served
    from finetune.chat.server import Server

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise InputError(f"{TOKEN_VARIABLE} should have {LEAST_TOKEN} letters or more, of plain ASCII")
    made = token is None and not is_loopback(host)
    if made:
        token = new_token()
    server = Server(host, port)  # before the base is loaded, which may take long
    try:
        model = open_chat(found, base=base, say=click.echo)
    except BaseException:
        server.server_close()
        raise
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{server.port}"
    click.echo(f"\nopen {address}/ in a browser; OpenAI's API is at {address}/v1; Ctrl-C stops")
    click.echo(f"models: {', '.join(model.names)}; what is preferred on the page is appended to {pairs}")
    if made:
        click.echo(f"token, shown this once: {token}")
    elif token is not None:
        click.echo(f"every request needs the token of {TOKEN_VARIABLE}")
    if not is_loopback(host):
        click.echo("what is said travels unencrypted: use it in a network that you trust, or behind a TLS proxy")
    _until_stopped(server, Served(model, Door(host, token), pairs, max_new_tokens, click.echo))
    click.echo("stopped")


def _folders(targets: Sequence[Path], stages: Sequence[str], overrides: Sequence[str], runs: Path) -> list[Path]:
    recipes = [target for target in targets if target.is_file()]
    if recipes and len(targets) > 1:
        raise InputError("give one recipe, or folders: their bases have to be one and the same")
    if recipes:
        return stages_of(recipes[0], stages, overrides, runs)
    if stages:
        raise InputError(f"--stage belongs to a recipe; {targets[0]} is a folder")
    return [existing(target) for target in targets]


def _until_stopped(server: Server, served: Served) -> None:
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start(served)
        stop.wait()
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)

"""`finetune import`: a recipe from a configuration of Axolotl, LLaMA-Factory, torchtune or TRL."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.migrate.migrate import Migration


@click.command(name="import")
@click.argument("theirs", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="recipe.yaml", show_default=True, help="Recipe to write."
)
@click.option(
    "--from",
    "tool",
    type=click.Choice(["axolotl", "llama-factory", "torchtune", "trl"]),
    help="Whose configuration it is.  [default: told by its keys]",
)
@click.option(
    "--kind",
    type=click.Choice(["sft", "reward", "dpo", "kto", "orpo", "cpo"]),
    help="Which of TRL's commands the file is for, where nothing in it tells.",
)
@click.option("--force", is_flag=True, help="Overwrite the recipe if it exists.")
def import_(theirs: Path, out: Path, tool: str | None, kind: str | None, force: bool) -> None:
    """Write a recipe for what THEIRS says, a configuration of Axolotl, LLaMA-Factory, torchtune or TRL.

    Every key of theirs is in the recipe: as a value with its name beside it, or in a list of what was left out and why.
    What you have to decide stands on top. Run it where you run their command: relative paths begin there.

    \b
    Example:
      finetune import qlora.yml
      finetune import examples/train_lora/llama3_lora_dpo.yaml -o dpo.yaml
      finetune import config.yaml --from trl --kind dpo
    """
    from finetune.cli.init import schema_reference
    from finetune.migrate.migrate import migrate

    if out.is_dir():
        out = out / "recipe.yaml"
    if out.exists() and not force:
        raise InputError(f"{out} exists already; give another name with -o, or --force to overwrite it")
    if out.exists() and theirs.exists() and out.samefile(theirs):
        raise InputError(f"{out} is the file to be read: give another name with -o")
    found = migrate(theirs, out, tool=tool, kind=kind, schema=schema_reference(out.parent))
    _write(out, found.text)
    _summary(theirs, out, found)


def _write(out: Path, text: str) -> None:
    from finetune.durable import rename_file, write_bytes

    part = out.with_name(f"{out.name}.part{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(part, text.encode())
        rename_file(part, out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{out} cannot be written: {error.strerror}") from error


def _summary(theirs: Path, out: Path, found: Migration) -> None:
    from finetune.migrate.account import Fate

    account = found.account
    click.echo(f"read {theirs}: a configuration of {account.tool} ({found.why})")
    click.echo(f"wrote {out}: one stage of kind {found.kind}")
    click.echo(
        f"  carried over         {len(account.of(Fate.CARRIED))} keys; empty or off: {len(account.of(Fate.EMPTY))}"
    )
    for fate in (Fate.CHANGED, Fate.LEFT_OUT):
        told = account.of(fate)
        click.echo(
            f"  {fate.value:<20} {len(told) or 'nothing'}"
            + (": " + _names([entry.key for entry in told]) if told else "")
        )
    decide = account.of(Fate.DECIDE)
    click.echo(f"  {Fate.DECIDE.value:<20} {len(decide) or 'nothing'}")
    for entry in decide:
        click.echo(f"    - {entry.key + ': ' if entry.key else ''}{entry.note}")
    if found.wrong:
        click.echo("  `finetune check` will say:")
        for line in found.wrong:
            click.echo(f"    - {line}")
    click.echo(f"The recipe says why for each key.\nnext: finetune check {shlex.quote(str(out))}")


def _names(keys: list[str]) -> str:
    shown = ", ".join(keys[:8])
    return shown + (f", … {len(keys) - 8} more" if len(keys) > 8 else "")

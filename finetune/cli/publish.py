"""`finetune publish`: a finished folder to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from finetune.cli.options import runs_option
from finetune.errors import InputError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", metavar="USER/NAME", required=True, help="Where to on the hub.")
@click.option("--public", is_flag=True, help="Everybody can see it. Without: private.")
@click.option("--yes", is_flag=True, help="Do not ask before uploading.")
@click.option("--dry-run", type=click.Path(path_type=Path), metavar="DIR", help="Write what would go up there instead.")
@click.option(
    "--base",
    "bases",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    multiple=True,
    help="The base's folder, with its licence, if it is not where the run had it. Can be given several times.",
)
@click.option("--base-id", metavar="ORG/NAME", help="The base's name on the hub, where the run had it from a folder.")
@click.option("--license", "licence", metavar="ID", help="The base's licence, where its folder does not say it.")
@click.option(
    "--written-by",
    metavar="ID",
    multiple=True,
    help="Licence of a model that wrote data from outside the recipe, e.g. llama3.1. Can be given several times.",
)
@click.option("--collection", metavar="TITLE", help="Publish all that the run was made from, too, as a collection.")
@click.option(
    "--samples", type=click.IntRange(min=0), default=3, show_default=True, help="Held-out answers on the card."
)
@click.option("--allow", multiple=True, metavar="TEXT", help="A text that looks private and is meant to be public.")
@runs_option
def publish(
    run: Path,
    to: str,
    public: bool,
    yes: bool,
    dry_run: Path | None,
    bases: tuple[Path, ...],
    base_id: str | None,
    licence: str | None,
    written_by: tuple[str, ...],
    collection: str | None,
    samples: int,
    allow: tuple[str, ...],
    runs: Path,
) -> None:
    """Publish RUN, the folder of a finished run or of a merged or exported model, on the Hugging Face Hub.

    Its files are checked, the card and the licence files of its base are written, everything is read for keys and
    private paths, and what would go up is shown before you are asked. The token is that of `hf auth login` or HF_TOKEN.

    \b
    Example:
      finetune publish runs/chat/dpo-0123456789ab --to me/Llama-3.1-8B-chat --dry-run release
      finetune publish runs/chat/dpo-0123456789ab --to me/Llama-3.1-8B-chat
    """
    from finetune.release.publish import PublishSettings
    from finetune.release.publish import publish as send

    def ask(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise InputError("nobody is there to ask, so nothing was uploaded: look at the list above and add --yes")
        return click.confirm(question)

    settings = PublishSettings(
        to=to,
        public=public,
        bases=bases,
        base_id=base_id,
        licence=licence,
        written_by=written_by,
        collection=collection,
        samples=samples,
        allowed=allow,
        runs=runs,
    )
    send(run, settings, say=click.echo, ask=ask, dry_run=dry_run)

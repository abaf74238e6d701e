"""`finetune verify`: is a folder what it says it is?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", metavar="FOLDER|ID", help="The base of an adapter, if it is not where the run had it.")
@click.option("--files-only", is_flag=True, help="Compare the files' sha256 and load nothing.")
def verify(folder: Path, base: str | None, files_only: bool) -> None:
    """Check a run, or a merged, exported or downloaded FOLDER, against its own manifest.

    Every file's sha256, then tokenizer and template against the ids that were trained, then the model: loaded again, it
    has to give the logits or scores that were recorded when it was proven. Exit code 1, with the reason, where
    something differs.

    \b
    Example:
      finetune verify runs/chat/dpo-0123456789ab
      finetune verify downloaded-adapter --base meta-llama/Llama-2-7b-hf
      finetune verify merged
    """
    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.release.verify import verify as verify_folder

    verify_folder(folder, base=base, load=not files_only, say=click.echo)

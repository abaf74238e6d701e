"""`finetune export`: merged models for other programs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, type=click.Choice(["gguf", "ollama", "vllm", "awq", "gptq"]), help="For which program."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    help="GGUF type: f32, f16, bf16, q8_0 (default); with llama-cpp-python installed also q4_k_m, q6_k and more. "
    "AWQ and GPTQ: inputs that share a scale, g128 (default), g64 or g32.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="AWQ and GPTQ: rows (prompt and completion) on which AutoRound learns how to round; without, to nearest.",
)
def export(folder: Path, to: str, out: Path, kind: str | None, prompts: Path | None) -> None:
    """Export a merged FOLDER for llama.cpp (gguf), Ollama or vLLM, or in 4 bits (awq, gptq); for vLLM also an adapter.

    A GGUF file is read back, its tensors, words and template compared with the merged folder, and, where
    llama-cpp-python is installed, llama.cpp's own answers too, before the folder gets its name.

    \b
    Example:
      finetune merge runs/chat/dpo-0123456789ab --out merged
      finetune export merged --to gguf --type q8_0 --out chat-gguf
      finetune export merged --to ollama --out chat-ollama
      finetune export runs/chat/dpo-0123456789ab --to vllm --out chat-adapter
    """
    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.release.export import export as export_folder

    export_folder(folder, to, out, kind=None if kind is None else kind.lower(), prompts=prompts, say=click.echo)

"""The `finetune` command. Imports only click: a command's module is imported when that command is called.

This is the one place where errors become messages and exit codes: 0 done, 1 the work failed, 2 the input was wrong,
130 interrupted. Errors that are not ours keep their traceback and exit with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from finetune import __version__
from finetune.errors import FinetuneError
from finetune.quiet import quiet_libraries

COMMANDS = {  # name: (module:attribute, what `finetune --help` says)
    "init": ("finetune.cli.init:init", "Write a commented recipe to begin with."),
    "import": ("finetune.cli.import_:import_", "Turn another tool's configuration into a recipe."),
    "check": ("finetune.cli.check:check", "Check a recipe and the files it names. No torch, no network."),
    "plan": ("finetune.cli.plan:plan", "Show what a recipe would do, and why: stages, folders, memory."),
    "inspect": ("finetune.cli.inspect:inspect", "Show the tokens that would be trained, as the model sees them."),
    "sft": ("finetune.cli.kinds:sft", "Run the recipe's supervised fine-tuning stages."),
    "reward": ("finetune.cli.kinds:reward", "Run the recipe's reward model stages."),
    "reject": ("finetune.cli.kinds:reject", "Run the recipe's rejection sampling stages."),
    "dpo": ("finetune.cli.kinds:dpo", "Run the recipe's direct preference stages."),
    "ppo": ("finetune.cli.kinds:ppo", "Run the recipe's proximal policy optimisation stages."),
    "grpo": ("finetune.cli.kinds:grpo", "Run the recipe's GRPO stages (TRL)."),
    "rloo": ("finetune.cli.kinds:rloo", "Run the recipe's RLOO stages (TRL)."),
    "average": ("finetune.cli.kinds:average", "Run the recipe's averages of adapters."),
    "run": ("finetune.cli.run:run", "Run everything in the recipe that is not done yet."),
    "show": ("finetune.cli.show:show", "Show the stages of a recipe: state, folder, metrics."),
    "report": ("finetune.cli.report:report", "One HTML file: data, curves, results, answers."),
    "eval": ("finetune.cli.eval:evaluate", "Measure a run: loss, reward, win rate, IFEval, GSM8K."),
    "chat": ("finetune.cli.chat:chat", "Talk to a run, side by side with its base or others."),
    "serve": ("finetune.cli.serve:serve", "An OpenAI-compatible address and a page, on loopback."),
    "merge": ("finetune.cli.merge:merge", "Merge adapters into their base, proven."),
    "export": ("finetune.cli.export:export", "Export a merged model to GGUF, Ollama or vLLM."),
    "verify": ("finetune.cli.verify:verify", "Check a run, or a merged folder, against its manifest."),
    "publish": ("finetune.cli.publish:publish", "Publish a run on the hub: proven, with card and licence."),
}


class LazyGroup(click.Group):
    """Lists its commands from COMMANDS, and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        if ctx.resilient_parsing or cmd_name.startswith("-"):
            return None
        raise click.exceptions.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="finetune")
def cli() -> None:
    """Post-training for the LLaMA family: from a checkpoint and one YAML recipe to adapters that prove themselves.

    \b
    Example:
      finetune init recipe.yaml     # write a recipe with comments
      finetune check recipe.yaml    # is everything in it right?
      finetune sft recipe.yaml      # train
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    quiet_libraries()
    try:
        result: Any = cli.main(args, prog_name="finetune", standalone_mode=False)
    except FinetuneError as error:
        _tell(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None  # click takes every EOFError for Ctrl-D; a library's own is to be shown
        click.echo("Interrupted.", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        return 130
    return result if isinstance(result, int) else 0  # --help and --version return their exit code


def _tell(error: FinetuneError) -> None:
    """One line as `Error: …`; a list of problems as it is, so that editors find file:line at its beginning."""
    message = str(error)
    bare = "\n" in message or error.exit_code == 130
    click.echo(message if bare else click.style("Error: ", fg="red") + message, err=True)


if __name__ == "__main__":
    sys.exit(main())

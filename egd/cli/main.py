"""The command line ``egd``. It knows no domain: experiments and further commands come by entry points."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from egd.cli.evaluate import evaluate
from egd.cli.listings import list_all
from egd.cli.run import run, sweep
from egd.cli.terminal import complain, console, errors, say
from egd.errors import missing
from egd.runs.stopping import exit_code, stoppable, told

app = typer.Typer(
    name="egd",
    help="Energy-guided diffusion: run recipes, evaluate runs, list components.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(run)
app.command()(sweep)
app.command("eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(evaluate)
app.command("list")(list_all)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    """Show the version where the option asks for it; else the sub-command follows."""
    if version:
        from importlib.metadata import version as installed

        console.print(f"egd {installed('egd')}", highlight=False)
        raise typer.Exit


def add_commands() -> None:
    """Add the sub-commands that installed packages offer in the entry-point group ``egd.commands``."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="egd.commands"):
        try:
            sub: typer.Typer | Callable[..., Any] = entry.load()
        except ImportError as error:  # its package is half installed; the other commands work without it
            say(f"egd {entry.name} is not there: {error}", "yellow", errors)
            continue
        if isinstance(sub, typer.Typer):
            app.add_typer(sub, name=entry.name)
        else:
            app.command(entry.name)(sub)


def keep_compiled() -> None:
    """Keep what torch.compile makes in the user's cache folder, unless the user has chosen a folder. Torch's default is a
    folder for temporary files, which later runs may not find.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "egd" / "inductor"))


def entry() -> None:
    """Run the console script. Characters that the terminal's encoding lacks are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stoppable():
        try:
            keep_compiled()
            add_commands()
            app()
        except ModuleNotFoundError as error:
            complain(missing(error))
            raise SystemExit(2) from None
        except (SystemExit, KeyboardInterrupt) as ended:
            if told() and (isinstance(ended, KeyboardInterrupt) or ended.code):
                raise SystemExit(exit_code()) from None
            raise


if __name__ == "__main__":
    entry()

"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egd.errors import UserError

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, or the config.yaml of an earlier run.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Only this task of the recipe, or those of a pattern: 'door-*'. May be repeated."),
]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="Only this one of a recipe's methods. May be repeated.")
]
Budget = Annotated[
    str | None, typer.Option("--budget", "-b", help="A named budget of the recipe, such as smoke, quick or full.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="Override a key: a.b=c. May be repeated.")]
Seeds = Annotated[
    str | None, typer.Option(help="Many runs, a seed each: 0-7, or 0,2,5. What can be is trained as one program.")
]
Grid = Annotated[
    list[str] | None, typer.Option("--grid", "-g", help="Runs for all values of a key: a.b=1,3,10. May be repeated.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the runs; runs/<recipe> by default.")]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run code that the files name although they may be a stranger's (see SECURITY.md)."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train every phase, also those that another run has finished.")]


def numbers(text: str | None) -> list[float] | None:
    """Parse the guidance scales of an option, such as 0.1,1,3, without repetitions. Raises UserError for any other form."""
    from pydantic import TypeAdapter, ValidationError

    from egd.bounds import Omega

    if text is None:
        return None
    try:
        numbers = TypeAdapter(list[Omega]).validate_python(text.split(","))
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"'{text}' is not a list of guidance scales such as 0.1,1,3 ({wrong})", key="--omega") from None
    return list(dict.fromkeys(numbers))

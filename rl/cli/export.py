"""Command ``egd export``: a trained policy as a file that runs without egd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egd.cli.arguments import TrustCode
from egd.cli.terminal import console, say, user_errors


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a complete run: OUT/<task>/seed-<n>.")],
    to: Annotated[Path, typer.Option("--to", help="The file to write: FILE.pt2 (torch.export) or FILE.onnx.")],
    policy: Annotated[
        str | None, typer.Option(help="guided, a variant of the recipe, behaviour, or policy; the headline policy by default.")
    ] = None,
    omega: Annotated[float | None, typer.Option(help="Guidance scale; the recipe's by default.")] = None,
    batch: Annotated[int, typer.Option(help="How many observations the file takes at a time.", min=1)] = 1,
    trust_code: TrustCode = False,
) -> None:
    """Write a trained policy to one file that runs without egd: the whole guided solve, with its noise as an input."""
    from egd.runs.progress import Reporter
    from rl.deploy.export import check_target, write
    from rl.deploy.module import load_module

    with user_errors():
        check_target(to)
        with Reporter(console).notices():
            about = write(load_module(run, policy, omega, trust_code=trust_code), to, batch)
    inputs = ", ".join(f"{name} {shape}" for name, shape in about["inputs"].items())
    say(f"{to}: policy {about['policy']}, omega {about['omega']:g}, inputs {inputs}")

"""``egd eval``. Heavy imports are delayed until the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from egd.cli.arguments import TrustCode, numbers
from egd.cli.terminal import console, show, user_errors
from egd.config.trust import reading
from egd.errors import UserError


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run folder: OUT/<task>/seed-<n>.")],
    omega: Annotated[str | None, typer.Option(help="Guidance scales, comma-separated: 0.1,1,3.")] = None,
    episodes: Annotated[
        int | None, typer.Option(help="Samples, or episodes, for every guidance scale.", min=1, max=10**6)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling; the run's by default.", min=0, max=2**32 - 1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Evaluate the checkpoints of a run again. Runs of an experiment may take further options: egd list options."""
    from egd.config.base import read_yaml
    from egd.runs import experiment as experiments
    from egd.runs.progress import Reporter

    with user_errors():
        config = run / "config.yaml"
        if not config.exists():
            raise UserError(f"{run} is not a run folder: it has no config.yaml; give OUT/<task>/seed-<n>")
        settings: dict[str, Any] = {"omegas": numbers(omega), "episodes": episodes, "seed": seed, "device": device}
        name = read_yaml(config).get("experiment")
        reporter = Reporter(console)
        with reading(config, trust_code), reporter.notices():
            experiment = experiments.load(name, str(config))
            settings |= experiments.further(experiment, str(name), context.args)
            rows = experiment.evaluate(run, settings, reporter)
    show(rows, f"Evaluation of {run}")

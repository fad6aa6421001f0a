"""Costs of methods, from finished runs of one task: seconds of training, and milliseconds of acting, measured now. A command:

    python -m benchmarks.costs runs/benchmark/hopper-medium-expert

Training times are those in the summaries, of one run of each method. Phases that the store supplied count with the seconds of
their training. Actions are those of the headline policy, in one state and in ten, by the code of the evaluation and by the
traced policy of control loops.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from torch import Tensor

from egd.bench.speed import FULL, QUICK, Timing, block_times
from egd.cli.terminal import console, show, user_errors
from egd.errors import UserError
from egd.report.runs import Run, find
from egd.runs.folder import RunFolder
from egd.runs.progress import Reporter
from egd.training.precision import set_up
from rl.agents.base import Agent
from rl.deploy import Policy, PolicyModule
from rl.runs.loading import read_config, restore

STATES = (1, 10)


def costs(run: Run, agent: Agent, timing: Timing) -> dict[str, str]:
    """Return a row of the table."""
    phases = {name: s for name, s in run.summary.seconds.items() if name not in ("data", "evaluation", "evaluation_env_step")}
    row = {"method": run.label, **{name: f"{s:.0f}" for name, s in phases.items()}, "training s": f"{sum(phases.values()):.0f}"}
    for n in STATES:
        row[f"ms, {n}"] = f"{acting(agent, n, timing):.3g}"
    row["traced ms, 1"] = _traced(agent, timing)
    return row


def acting(agent: Agent, states: int, timing: Timing) -> float:
    """Measure the milliseconds of one headline action in each of ``states`` states."""
    act = agent.acting(0)
    rows = agent.data.transitions.state[:states]
    scale_index = torch.zeros(states, dtype=torch.long, device=agent.device)
    return _ms(lambda: act(rows, scale_index), agent, timing)


def _traced(agent: Agent, timing: Timing) -> str:
    """Format the milliseconds of the traced policy; empty where the policy cannot be traced."""
    name, _, scale = agent.headline.partition("@")
    observation: Tensor = agent.data.transitions.state[0] * agent.data.state_std + agent.data.state_mean
    try:
        policy = Policy(PolicyModule(agent, name, float(scale) if scale else None))
        policy.warm_up(1)
    except UserError:
        return ""
    return f"{_ms(lambda: policy(observation), agent, timing):.3g}"


def _ms(call: Callable[[], object], agent: Agent, timing: Timing) -> float:
    (times,) = block_times([call], agent.device, timing)
    return 1000 * median(times)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold runs of one task, at any depth.")],
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Tabulate seconds of training and milliseconds of acting, for one run of every method."""
    reporter, timing = Reporter(console), QUICK if quick else FULL
    set_up(device, 1)
    with user_errors():
        first = {run.label: run for run in reversed(find(runs).runs)}
        if len(tasks := {run.summary.task for run in first.values()}) > 1:
            raise UserError(f"the runs are of several tasks: {', '.join(sorted(tasks))}; give those of one", key="RUNS")
        rows = []
        with reporter.bar("measuring", len(first)) as bar:
            for label, run in sorted(first.items()):
                folder = RunFolder(run.path)
                config = read_config(folder).model_copy(update={"device": device, "compile": False})
                agent, _ = restore(config, folder, torch.device(device))
                rows.append(costs(run, agent, timing))
                bar.advance(1, label)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    last = ["training s", *[c for c in columns if " ms" in c or c.startswith("ms")]]
    ordered = [c for c in columns if c not in last] + last
    show([{c: row.get(c, "") for c in ordered} for row in rows], f"Costs: {tasks.pop()}, {device}")


if __name__ == "__main__":
    typer.run(main)

"""``egd data``: what datasets there are, what is in them, and how to come by more. Heavy imports wait for the command
that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from egd.cli import console, listing, user_errors

app = typer.Typer(help="Offline datasets: list, describe, generate, import.", no_args_is_help=True)


@app.command("list")
def list_datasets(
    remote: Annotated[bool, typer.Option("--remote", help="Also ask Minari's hub (needs a network).")] = False,
) -> None:
    """List the tasks with their datasets, and all local datasets."""
    import minari

    from rl.tasks import TASKS

    local = minari.list_local_datasets()
    tasks = listing("tasks", "task", "datasets", "here", "environment", "steps", "reference")
    for task in TASKS.values():
        here = all(d in local for d in task.datasets)
        reference = " to ".join(f"{r:.0f}" for r in task.reference) if task.reference else "-"
        tasks.add_row(
            task.name, " + ".join(task.datasets), "[green]yes[/]" if here else "no", task.env_id, str(task.max_steps), reference
        )
    console.print(tasks)
    table = listing("local datasets", "dataset", "episodes", "steps")
    for name, metadata in sorted(local.items()):
        table.add_row(name, str(metadata.get("total_episodes")), str(metadata.get("total_steps")))
    console.print(table)
    if remote:
        console.print(*sorted(minari.list_remote_datasets()), sep="\n", highlight=False)


@app.command()
def describe(dataset: Annotated[str, typer.Argument(help="A Minari id, or a task's short name.")]) -> None:
    """Sizes, returns and scores of a dataset, with a histogram of returns."""
    import numpy as np

    from rl.data import load_episodes
    from rl.tasks import find_task

    with user_errors():
        task = find_task(dataset)
        episodes = load_episodes(task.datasets, task.observation_keys)
    returns, lengths = episodes.returns, episodes.lengths
    table = Table(title=" + ".join(task.datasets), title_justify="left", show_header=False)
    actions = np.concatenate(episodes.actions)
    rows = {
        "episodes": f"{len(returns)}",
        "transitions": f"{lengths.sum()}",
        "ended by a terminal": f"{sum(bool(t[-1]) for t in episodes.terminations)}",
        "state, action entries": f"{episodes.observations[0].shape[1]}, {actions.shape[1]}",
        "episode length": f"{lengths.mean():.1f} (from {lengths.min()} to {lengths.max()})",
        "return": f"{returns.mean():.1f} ± {returns.std():.1f} (from {returns.min():.1f} to {returns.max():.1f})",
        "normalised score": f"{task.score(float(returns.mean())):.1f}" if task.reference else "no reference score",
        "actions beyond ±0.99": f"{100 * float((np.abs(actions) > 0.99).mean()):.1f} %",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    console.print(table)
    counts, edges = np.histogram(returns, bins=12)
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        console.print(f"{low:>10.1f} .. {high:<10.1f} {'█' * int(np.ceil(40 * count / counts.max()))} {count}", highlight=False)


@app.command()
def generate(
    dataset: Annotated[str, typer.Argument(help="The Minari id to make, such as egd/maze2d/umaze-v0.")],
    maze: Annotated[str, typer.Option(help="umaze, medium or large.")] = "umaze",
    steps: Annotated[int, typer.Option(help="Transitions.", min=1)] = 100_000,
    noise: Annotated[float, typer.Option(help="Standard deviation of the controller's action noise.", min=0.0)] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dense: Annotated[bool, typer.Option("--dense", help="Reward exp(-distance) instead of 1 within 0.5.")] = False,
) -> None:
    """Make a maze2d dataset: a waypoint controller walks PointMaze to random goals, rewarded at one fixed goal."""
    from egd.progress import Reporter
    from rl.maze2d import generate as make

    with user_errors(), Reporter(console).bar(f"make {dataset}", steps) as bar:
        make(
            dataset,
            map_name=maze,
            steps=steps,
            noise=noise,
            seed=seed,
            dense=dense,
            progress=lambda done: bar.advance(done - bar.done),
        )
    console.print(f"{dataset} is in the local Minari store", highlight=False)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A D4RL file (HDF5).")],
    dataset: Annotated[str, typer.Option("--id", help="The Minari id to give it, such as D4RL/door/human-v2.")],
    env: Annotated[str | None, typer.Option(help="The gymnasium environment id to store with it.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Episode length where the file has no 'timeouts'.", min=1)] = None,
) -> None:
    """Turn a D4RL HDF5 file into a local Minari dataset."""
    from rl.d4rl_import import import_hdf5
    from rl.envs import register

    with user_errors():
        register()
        report = import_hdf5(file, dataset, env_id=env, max_steps=max_steps)
    console.print(
        f"{report.dataset_id}: {report.episodes} episodes, {report.steps} transitions, mean return {report.mean_return:.1f}; "
        f"{report.dropped} transitions dropped (their next observation is unknown)",
        highlight=False,
    )

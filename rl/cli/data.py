"""Commands ``egd data``: list, describe, check, generate and import datasets. Heavy imports wait for the command that needs
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from egd.cli.arguments import TrustCode
from egd.cli.terminal import console, listing, say, user_errors
from egd.config.trust import trusting
from egd.errors import UserError
from egd.files import write_text
from egd.runs.safe_names import literal

app = typer.Typer(help="Offline datasets: list, check, describe, generate, import.", no_args_is_help=True)
SHOWN = 100
"""Maximum number of problems printed per dataset."""


@app.command("list")
def list_datasets(
    remote: Annotated[bool, typer.Option("--remote", help="Also ask Minari's hub (needs a network).")] = False,
) -> None:
    """List the tasks, and all local datasets."""
    from rl.data.stored import list_local
    from rl.runs.listings import list_tasks

    with user_errors():
        for part in list_tasks():
            console.print(part)
        table = listing("local datasets", "dataset", "episodes", "steps")
        for name, metadata in sorted(list_local().items()):
            table.add_row(*map(literal, (name, metadata.get("total_episodes"), metadata.get("total_steps"))))
    console.print(table)
    if remote:
        import minari

        say("\n".join(sorted(minari.list_remote_datasets())))


@app.command()
def describe(
    dataset: Annotated[str, typer.Argument(help="A Minari id, or a task's short name.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all of it, entry by entry, to this file.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the histogram of returns: an image file (.png, .pdf).")] = None,
) -> None:
    """Show sizes, returns and scores of a dataset, its ranges, and its rewards as trained on, with a histogram of returns."""
    from rl.data.describe import describe as facts_of
    from rl.data.describe import returns_figure
    from rl.data.episodes import load_episodes
    from rl.tasks import find_task

    with user_errors():
        task = find_task(dataset)
        episodes = load_episodes(task.datasets, task.observation_keys)
        facts = facts_of(task, episodes)
        console.print(_facts_table(facts, task.env_id or _environment(task.datasets[0])))
        _histogram(episodes.returns)
        if json_file is not None:
            with _writing(json_file):
                write_text(json_file, json.dumps(facts, indent=2) + "\n")
        if figure is not None:
            with _writing(figure):
                returns_figure(episodes.returns, task, figure)


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="A Minari id, a task's short name, or a D4RL file (HDF5).")],
    trust_code: TrustCode = False,
) -> None:
    """List all problems of a dataset, or of a file before it is imported; exit code 2 if there are any."""
    from rl.data.health import problems_of

    with user_errors(), trusting(True) if trust_code else nullcontext():
        found = problems_of(dataset)
    for name, problems in found.items():
        say(f"{name}: {len(problems)} wrong" if problems else f"{name}: nothing is wrong")
        for problem in problems[:SHOWN]:
            say(f"  {problem}")
        if len(problems) > SHOWN:
            say(f"  and {len(problems) - SHOWN} more")
    if any(found.values()):
        raise typer.Exit(2)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: an image format that Matplotlib does not have
        raise UserError(f"cannot write {path}: {error}") from error


def _evaluated(trained: Mapping[str, Any]) -> str:
    if trained.get("score") is None:
        return ""
    longer = trained["beyond_the_step_limit"]
    return f"{trained['score']:.1f}" + (f" ({longer} episodes are longer than the task's)" if longer else "")


def _environment(dataset: str) -> str:
    """Return whether there is an environment to evaluate in; ``egd data check`` says what may be wrong with it."""
    from rl.data.stored import existing
    from rl.envs.specs import NoEnvironment, stored_spec

    try:
        stored_spec(existing(dataset))
    except NoEnvironment:
        return "none: runs are trained, and not evaluated"
    except UserError:
        pass
    return "stored with the data"


def _facts_table(facts: Mapping[str, Any], environment: str) -> Table:
    table = Table(title=literal(" + ".join(facts["datasets"])), title_justify="left", show_header=False)
    length, ended, returns, trained = (facts[k] for k in ("episode_length", "ended_by", "returns", "trained_on"))
    states, actions, count = facts["states"], facts["actions"], facts["episodes"]
    rows = {
        "episodes": f"{count}",
        "transitions": f"{facts['transitions']}",
        "episode length": f"{length['mean']:.1f} (from {length['min']:.0f} to {length['max']:.0f})",
        "ended by a terminal": f"{ended['terminal']} ({100 * ended['terminal'] / count:.1f} %)",
        "ended by truncation": f"{ended['truncation']} ({100 * ended['truncation'] / count:.1f} %)",
        "return": f"{returns['mean']:.1f} ± {returns['std']:.1f} (from {returns['min']:.1f} to {returns['max']:.1f})",
        "return at 5, 25, 50, 75, 95 %": _inner_quantiles(returns["quantiles"]),
        "normalised score": f"{facts['scores']['mean']:.1f}" if "scores" in facts else "none of the stored returns",
        "score at 5, 25, 50, 75, 95 %": _inner_quantiles(facts["scores"]["quantiles"]) if "scores" in facts else "",
        "state": f"{states['entries']} entries, {_range(states)}",
        "action": f"{actions['entries']} entries, {_range(actions)}, {100 * actions['beyond_0.99']:.1f} % beyond ±0.99",
        "reward": _reward(facts["rewards"]),
        "reward transform": _transform(trained),
        "reward transformed": _reward(trained["rewards"]),
        "score as an evaluation has it": _evaluated(trained),
        "environment": environment,
        "not as in the benchmark": facts["environment_differs"],
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, literal(value))
    return table


def _inner_quantiles(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{quantiles[key]:.1f}" for key in ("5", "25", "50", "75", "95"))


def _range(ranges: Mapping[str, Any]) -> str:
    return f"from {min(ranges['min']):.3g} to {max(ranges['max']):.3g}"


def _transform(trained: Mapping[str, Any]) -> str:
    first = "for the one goal, then " if trained["relabelled_for_the_goal"] else ""
    if trained["transform"] == "range":
        return f"{first}range: r x {trained['factor']:.3g}"
    return f"{first}{trained['transform'] if trained['transform'] != 'r' else 'as it is'}"


def _reward(reward: Mapping[str, float]) -> str:
    spread = f"{reward['mean']:.3g} ± {reward['std']:.3g} (from {reward['min']:.3g} to {reward['max']:.3g})"
    return f"{spread}, {100 * reward['share_not_zero']:.1f} % not zero"


def _histogram(returns: Any) -> None:
    import numpy as np

    counts, edges = np.histogram(returns, bins=12)
    block = "#" if console.options.ascii_only else "█"
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = block * int(np.ceil(40 * count / counts.max()))
        console.print(f"{low:>10.1f} .. {high:<10.1f} {bar} {count}", highlight=False)


@app.command()
def generate(
    dataset: Annotated[str, typer.Argument(help="The Minari id to make, such as egd/maze2d/umaze-v0.")],
    generator: Annotated[
        str, typer.Option("--generator", "-g", help="maze2d, noisy, mixed, or a function of yours: path/to/file.py:name.")
    ] = "maze2d",
    maze: Annotated[str | None, typer.Option(help="maze2d: umaze (by default), medium or large.")] = None,
    drawing: Annotated[
        str | None, typer.Option("--map", help="maze2d: a text file with a maze of your own: # wall, O free, G goal.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="maze2d: transitions, 100000 by default.", min=1)] = None,
    dense: Annotated[bool, typer.Option("--dense", help="maze2d: reward exp(-distance) instead of 1 within 0.5.")] = False,
    source: Annotated[str | None, typer.Option(help="noisy: the dataset whose actions are replayed.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="mixed: DATASET=SHARE, that share of its episodes, in (0, 1]. May be repeated.")
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="maze2d, noisy: standard deviation of the action noise; 0.5 and 0.1 by default.", min=0.0),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 by default.", min=0)] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Any other setting of the generator: key=value. May be repeated.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Make a dataset: maze2d walks a maze, noisy replays a dataset with noise, mixed joins datasets or shares of them."""
    from egd.config.base import override
    from egd.config.components import Spec
    from egd.runs.progress import Reporter
    from rl.data.generators import make

    with user_errors(), trusting(True) if trust_code else nullcontext():
        if maze is not None and drawing is not None:
            raise UserError("give --maze or --map, not both", key="--map")
        named: dict[str, Any] = {
            "map_name": maze,
            "map": drawing,
            "steps": steps,
            "source": source,
            "noise": noise,
            "seed": seed,
        }
        chosen = {key: value for key, value in named.items() if value is not None} | ({"dense": True} if dense else {})
        if part:
            chosen["parts"] = _shares(part)
        make(dataset, Spec(generator, override(chosen, settings or ())), Reporter(console), "generator")
    say(f"{dataset} is in the local Minari store")


def _shares(parts: Sequence[str]) -> dict[str, float]:
    """Parse DATASET=SHARE to shares by dataset; DATASET alone has share 1."""
    shares: dict[str, float] = {}
    for text in parts:
        name, _, share = text.partition("=")
        if name in shares:
            raise UserError(f"'{name}' is given twice: once is enough", key="--part")
        try:
            shares[name] = float(share or 1)
        except ValueError:
            raise UserError(
                f"'{text}' is not of the form DATASET=SHARE, such as mujoco/hopper/medium-v0=0.5", key="--part"
            ) from None
    return shares


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A D4RL file (HDF5).")],
    dataset: Annotated[str, typer.Option("--id", help="The Minari id to give it, such as D4RL/door/human-v2.")],
    env: Annotated[str | None, typer.Option(help="The gymnasium environment id to store with it.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Episode length where the file has no 'timeouts'.", min=1)] = None,
) -> None:
    """Import a D4RL HDF5 file as a local Minari dataset."""
    from rl.data.d4rl_import import import_hdf5
    from rl.envs.making import register

    with user_errors():
        register()
        report = import_hdf5(file, dataset, env_id=env, max_steps=max_steps)
    say(
        f"{report.dataset_id}: {report.episodes} episodes, {report.steps} transitions, mean return {report.mean_return:.1f}; "
        f"{report.dropped} transitions dropped (their next observation is unknown)"
    )

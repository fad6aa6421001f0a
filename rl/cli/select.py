"""Command ``egd select``: choose a policy without a simulator. Heavy imports wait for the command."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egd.cli.arguments import TrustCode, numbers
from egd.cli.terminal import console, show, user_errors
from egd.config.trust import trusting
from egd.errors import UserError
from egd.files import write_text
from egd.report.cli import conclude
from egd.runs.safe_names import markup

if TYPE_CHECKING:
    from rl.evaluation.offline_score import Score
    from rl.evaluation.offline_selection import Judged, Selection, SelectionSettings


def select(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some at any depth, of one task.")],
    omega: Annotated[
        str | None, typer.Option(help="Guidance scales, comma-separated: 0.1,1,3; the recipe's by default.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="A nat of divergence costs 1 / beta; the first run's beta by default.")
    ] = None,
    penalty: Annotated[
        str, typer.Option(help="kl: KL / beta; error: the critics' error x sqrt(2 KL), which needs no beta.")
    ] = "kl",
    fqe: Annotated[
        int, typer.Option(help="Steps of fitted Q evaluation of every policy; 0: the runs' own critics judge.", min=0)
    ] = 0,
    states: Annotated[int, typer.Option(help="Number of states of the data in which policies act.", min=2)] = 64,
    actions: Annotated[int, typer.Option(help="Number of actions of every policy in every state.", min=3)] = 16,
    seed: Annotated[int, typer.Option(help="Seed of states and actions.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all of it to this file.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Choose a policy, such as a guidance scale, from finished runs and their data alone."""
    from egd.runs.progress import Reporter
    from rl.evaluation.offline_score import check_penalty
    from rl.evaluation.offline_selection import SelectionSettings
    from rl.evaluation.offline_selection import select as judge

    with user_errors():
        if beta is not None and not 0 < beta < inf:
            raise UserError(f"{beta:g} is no inverse temperature: it is positive and finite", key="--beta")
        settings = SelectionSettings(states, actions, numbers(omega), check_penalty(penalty), beta, fqe, seed, device)
        reporter = Reporter(console)
        with trusting(trust_code), reporter.notices():
            found = judge(runs, settings, reporter)
        if json_file is not None:
            write_text(json_file, json.dumps(as_json(found, settings), indent=2) + "\n")
    several = len({row.run for row in found.rows}) > 1
    show([_row(row, found, several) for row in found.rows], f"Judged without a simulator: {found.task}")
    for line in (*_skipped(found), *_remarks(found, settings)):
        console.print(line, highlight=False, soft_wrap=True)
    conclude(found.damaged)


def as_json(found: Selection, settings: SelectionSettings) -> dict[str, Any]:
    """Return the whole selection as JSON values."""
    rows = [
        {"run": r.run, "policy": r.policy, **_numbers(r.score), "simulated": r.simulated, "chosen": r.name == found.chosen}
        for r in found.rows
    ]
    cost = found.regret
    return {
        "task": found.task,
        "settings": asdict(settings),
        "price": found.price,
        "judges": list(found.judges),
        "rows": rows,
        "chosen": found.chosen,
        "default": found.default,
        "regret": None if cost is None else asdict(cost) | {"of_choice": cost.of_choice, "of_default": cost.of_default},
        "skipped": [{"path": str(path), "reason": reason} for path, reason in found.skipped],
        "damaged": [{"path": str(path), "reason": reason} for path, reason in found.damaged],
        "notes": list(found.notes),
    }


def _numbers(score: Score) -> dict[str, float | None]:
    """Return the fields of a score, with None (JSON's null) for values that are not finite."""
    return {name: value if isfinite(value) else None for name, value in asdict(score).items()}


def _row(judged: Judged, found: Selection, several: bool) -> dict[str, str]:
    s = judged.score
    return {
        **({"run": judged.run} if several else {}),
        "policy": judged.policy + (" *" if judged.name == found.chosen else ""),
        "value": f"{s.value:.3g}",
        "KL": f"{s.kl:.2f}",
        "score ± s.e.": f"{s.score:.3g} ± {s.se:.2g}",
        "simulator": "-" if judged.simulated is None else f"{judged.simulated:.1f}",
    }


def _skipped(found: Selection) -> list[str]:
    return [f"[yellow]not used[/] {markup(f'{path}: {reason}')}" for path, reason in found.skipped]


def _remarks(found: Selection, settings: SelectionSettings) -> list[str]:
    what = "the critics' error" if settings.penalty == "error" else "a nat costs"
    lines = [f"Chosen: {markup(found.chosen)} ({what} {found.price:.3g})", *map(markup, found.notes)]
    cost = found.regret
    if cost is None:
        return lines
    of_choice, of_default = (_cost(score, cost.best_score) for score in (cost.chosen_score, cost.default_score))
    lines.append(
        f"By the simulator: best {markup(cost.best)}, {cost.best_score:.1f}; chosen {of_choice}; "
        f"default {markup(found.default)}, {of_default}"
    )
    return lines


def _cost(score: float | None, best: float) -> str:
    return "not rolled out" if score is None else f"{score:.1f} (regret {best - score:.1f})"

"""Agreement of finished runs of one task: do critics prefer the same actions, and do energies have the same gradients? A
command:

    python -m benchmarks.agreement runs/benchmark/hopper-medium-expert

Critics of several seeds or kinds were trained on the same data. Where a second critic rates the action that one picks among
behaviour samples no better than chance, a policy that follows either critic follows its errors. Energies of one seed share the
critic and the behaviour policy: differences between their gradients are due to the estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer
from torch import Tensor

from egd.cli.terminal import console, show, user_errors
from egd.denoisers import diffuse
from egd.errors import UserError, nearest
from egd.report.cli import conclude
from egd.report.runs import Run, find
from egd.runs.progress import Reporter
from egd.tensors import value_and_grad
from rl.agents.base import Agent
from rl.critics import Critic
from rl.data.transitions import Batch
from rl.evaluation.offline_selection import behaviours_of, critics_of, usable
from rl.parts.guidance import Guidance
from rl.parts.guidance_settings import OF_NETWORK

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)

Grad: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x, t, s -> grad E_t, (N, A)."""
Row: TypeAlias = dict[str, str]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two critics, means over states. ``rank`` is the rank correlation of their Q over K actions. The other two
    are the excess over the mean, in standard deviations of Q within the state, of the Q of the action that the first critic
    picks: ``claimed`` is the first critic's excess, ``confirmed`` the second critic's, 0 for random picks.
    """

    rank: float
    claimed: float
    confirmed: float


def agreement(picks: Tensor, judges: Tensor) -> Agreement:
    """Compute the agreement of two critics from their Q of the same actions, (N, K) each, K >= 2."""
    a, b = _standard(picks), _standard(judges)
    best = a.argmax(1, keepdim=True)
    ranks = [_standard(q.argsort(1).argsort(1).to(q.dtype)) for q in (picks, judges)]
    return Agreement(
        rank=float((ranks[0] * ranks[1]).mean()),
        claimed=float(a.gather(1, best).mean()),
        confirmed=float(b.gather(1, best).mean()),
    )


def _standard(q: Tensor) -> Tensor:
    """Standardise every row to mean 0 and mean square 1."""
    return (q - q.mean(1, keepdim=True)) / q.std(1, keepdim=True, correction=0).clamp(min=torch.finfo(q.dtype).tiny)


@torch.no_grad()
def of_critics(critics: Sequence[tuple[Run, Critic]], states: Tensor, actions: Tensor) -> list[Row]:
    """Compare critics on (N, S) states and (N, K, A) actions. Returns a row for every pair of kinds, with means over pairs of
    critics.
    """
    tiled, flat = states.repeat_interleave(actions.shape[1], 0), actions.flatten(0, 1)
    values = [(str(run.config["critic.name"]), critic.q(tiled, flat).reshape(actions.shape[:2])) for run, critic in critics]
    found: dict[tuple[str, str], list[Agreement]] = {}
    for (kind, picks), (other, judges) in permutations(values, 2):
        found.setdefault((kind, other), []).append(agreement(picks, judges))
    means = {
        kinds: {f.name: sum(getattr(p, f.name) for p in pairs) / len(pairs) for f in fields(Agreement)}
        for kinds, pairs in found.items()
    }
    return [
        {"picks": kinds[0], "judges": kinds[1], "pairs": str(len(found[kinds])), **{k: f"{v:.2f}" for k, v in mean.items()}}
        for kinds, mean in means.items()
    ]


def of_energies(runs: Sequence[Run], agents: Sequence[Agent], rows: Batch, against: str | None) -> tuple[list[Row], list[Row]]:
    """Compare gradients at the data's actions noised to TIMES, over seeds. Returns rows of the mean cosine with the gradient of
    ``against``, by default the first energy, and rows of the median length relative to the score's length, sqrt(A) / sigma_t.
    Raises UserError where there is no such energy.
    """
    pushes: dict[str, list[Tensor]] = {}
    every_one = [(run, getattr(agent, "guidance", None)) for run, agent in zip(runs, agents, strict=True)]
    guided = [(run, guidance) for run, guidance in every_one if isinstance(guidance, Guidance)]
    for seed in sorted({run.summary.seed for run, _ in guided}):
        for name, (guidance, grad) in _grads([(run, own) for run, own in guided if run.summary.seed == seed]).items():
            pushes.setdefault(name, []).append(_pushes(guidance, grad, rows))
    if against is not None and against not in pushes:
        raise UserError(f"no energy is called '{against}'; {nearest(against, pushes)}", key="--against")
    seeds = min(map(len, pushes.values()), default=0)
    every = {name: torch.stack(found[:seeds], 1).flatten(1, 2) for name, found in pushes.items()}  # TIMES, seeds N, A
    cosines = {name: torch.cosine_similarity(own, every[against or next(iter(every))], dim=2) for name, own in every.items()}
    return [_row(name, found.mean(1)) for name, found in cosines.items()], [
        _row(name, own.norm(dim=2).median(1).values) for name, own in every.items()
    ]


def _row(name: str, values: Tensor) -> Row:
    return {"energy": name, **{f"t {t:g}": f"{float(value):.2g}" for t, value in zip(TIMES, values, strict=True)}}


def _grads(runs: Sequence[tuple[Run, Guidance]]) -> Mapping[str, tuple[Guidance, Grad]]:
    """Return the gradient of every energy that the agents guide by, each distinct energy once."""
    found: dict[str, tuple[Guidance, Grad]] = {}
    seen: set[str] = set()
    for run, guidance in runs:
        for name, settings in guidance.config.guidances.items():
            form = settings.model_dump_json(include=OF_NETWORK)
            if form not in seen:
                found[f"{run.label} {name}"] = guidance, _grad(guidance, name)
            seen.add(form)
    return found


def _grad(guidance: Guidance, name: str) -> Grad:
    energy = guidance.policy(name).timed_energy(torch.Generator(guidance.calibration.behaviour.low.device).manual_seed(0))
    return lambda x, t, s: value_and_grad(lambda x: energy(x, t, s), x)[1]


def _pushes(guidance: Guidance, grad: Grad, rows: Batch) -> Tensor:
    """Return the gradients in units of the score's length: (TIMES, N, A)."""
    schedule, device = guidance.calibration.behaviour.schedule, rows.action.device
    noise = torch.randn(rows.action.shape, generator=torch.Generator(device).manual_seed(0), device=device)
    found = []
    for time in TIMES:
        t = torch.full((len(noise),), time, device=device)
        x = diffuse(schedule, rows.action, t, noise)
        unit = schedule.sigma(t)[:, None] / noise.shape[1] ** 0.5
        found.append(grad(x, t, rows.state).detach() * unit)
    return torch.stack(found)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders that hold runs of one task, at any depth.")],
    states: Annotated[int, typer.Option(help="Number of states of the data.", min=1)] = 256,
    actions: Annotated[int, typer.Option(help="Number of actions of the behaviour policy in every state.", min=2)] = 16,
    against: Annotated[
        str | None,
        typer.Option(help="The energy that the others are compared with, as the table has it; the first by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compare critics by their preferred actions, and energies by their gradients."""
    with user_errors():
        all_of_them, agents, data = usable(find(runs), device, Reporter(console))
        found = all_of_them.runs
        behaviour = next(iter(behaviours_of(all_of_them, agents).values()))
        rows = data.sample(states, torch.Generator(data.transitions.state.device).manual_seed(0))
        show(of_critics(critics_of(found, agents), rows.state, behaviour.actions(rows.state, actions, 0)), "Critics")
        cosines, lengths = of_energies(found, agents, rows, against)
        if cosines:
            show(cosines, f"Energies: cosine of the gradient to that of '{against or cosines[0]['energy']}'")
            show(lengths, "Energies: length of the gradient, in that of the score")
    conclude(all_of_them.damaged)


if __name__ == "__main__":
    typer.run(main)

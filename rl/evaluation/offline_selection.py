"""Selection of a policy among finished runs, from their checkpoints and data alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from egd.errors import UserError
from egd.report.runs import Found, Run, find
from egd.runs.folder import RunFolder
from egd.runs.phase import seed_of
from egd.runs.progress import Reporter
from egd.runs.recipe import pick_device
from egd.training.precision import set_up
from rl.agents.base import Agent, critic_of
from rl.config import CriticConfig, HasCriticConfig, RunConfig, Tempered
from rl.critics import Critic
from rl.data.record import of_run
from rl.data.transitions import OfflineData
from rl.evaluation.evaluator import names
from rl.evaluation.fqe import Draw, fitted_q
from rl.evaluation.offline_score import (
    Penalty,
    Regret,
    Score,
    cautious,
    choose,
    disagreement,
    held_out,
    neighbour_kl,
    regret,
    regularised,
    spread,
)
from rl.runs.loading import load_data, read_config, restored

T = TypeVar("T")
ROWS = 256  # states per batch of acting: an energy may draw tens of actions for each


@dataclass(frozen=True)
class SelectionSettings:
    """Settings of the selection.

    Every policy is judged by ``actions`` actions in each of ``states`` states of the data. ``omegas`` replaces the recipe's
    guidance scales, ``beta`` replaces the first run's, in the same units. ``fqe`` is the number of steps of fitted Q
    evaluation; 0 uses the runs' own critics.
    """

    states: int = 64
    actions: int = 16
    omegas: Sequence[float] | None = None
    penalty: Penalty = "kl"
    beta: float | None = None
    fqe: int = 0
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Candidate:
    """Policy of a run, at one guidance scale if it has any."""

    run: Run
    agent: Agent
    name: str
    scales: Sequence[float]

    @property
    def policy(self) -> str:
        """Name of the policy, ``name`` or ``name@scale``."""
        return names(self.name, self.scales)[0]

    def acting(self, seed: int) -> Draw:
        """Return a function that draws one action in every state, in batches that fit into memory."""
        generator = torch.Generator(self.agent.device).manual_seed(seed_of(seed, f"select/{self.policy}"))
        act = self.agent.policy(self.name, self.scales, generator)
        scale_index = torch.zeros(ROWS, dtype=torch.long, device=self.agent.device)
        return lambda states: torch.cat([act(part, scale_index[: len(part)]) for part in torch.split(states, ROWS)])

    def actions(self, states: Tensor, k: int, seed: int) -> Tensor:
        """Draw K actions in every state: (N, S) -> (N, K, A)."""
        return self.acting(seed)(states.repeat_interleave(k, 0)).reshape(len(states), k, -1)


@dataclass(frozen=True)
class Judged:
    """Judged policy, over all seeds of its run; ``simulated`` is its mean score in ``summary.json``, if it was rolled out."""

    run: str
    policy: str
    score: Score
    simulated: float | None

    @property
    def name(self) -> str:
        """Name of the policy among several runs."""
        return f"{self.run} {self.policy}"


@dataclass(frozen=True)
class Selection:
    """Result of a selection: all policies, the ``chosen`` one and the ``default`` (the first run's headline) by name, and the
    regret.

    ``price`` is the price of a nat in units of Q or, with the penalty ``error``, the critics' error.
    """

    task: str
    rows: Sequence[Judged]
    chosen: str
    default: str
    regret: Regret | None
    price: float
    judges: Sequence[str]
    skipped: Sequence[tuple[Path, str]]
    damaged: Sequence[tuple[Path, str]]
    notes: Sequence[str]


@dataclass(frozen=True)
class CriticEnsemble:
    """Mean of several critics, each giving its own pessimistic Q."""

    critics: Sequence[Critic]

    def __call__(self, states: Tensor, actions: Tensor) -> Tensor:
        """Compute Q averaged over critics and actions: (N, S), (N, K, A) -> (N,)."""
        return self._each(states, actions, lambda critic, s, a: critic.q(s, a)[None]).mean((0, 2))

    def members(self, states: Tensor, actions: Tensor) -> Tensor:
        """Compute the value of every network: (N, S), (N, K, A) -> (M, N, K)."""
        return self._each(states, actions, lambda critic, s, a: critic.target(s, a))

    @torch.no_grad()
    def _each(self, states: Tensor, actions: Tensor, ask: Callable[[Critic, Tensor, Tensor], Tensor]) -> Tensor:
        tiled, flat = states.repeat_interleave(actions.shape[1], 0), actions.flatten(0, 1)
        return torch.cat([ask(critic, tiled, flat) for critic in self.critics]).reshape(-1, *actions.shape[:2])


@dataclass(frozen=True)
class SelectionCase:
    """States (N, S) of the data, standardised, on which candidates are judged, and the rows that are not held out."""

    data: OfflineData
    states: Tensor
    others: Tensor
    settings: SelectionSettings

    def actions(self, candidate: Candidate) -> Tensor:
        """Draw the candidate's actions, (N, K, A)."""
        return candidate.actions(self.states, self.settings.actions, self.settings.seed)

    def reference(self, behaviour: Candidate) -> Tensor:
        """Draw further actions of the behaviour policy, (N, K - 1, A), independent of those it is judged by."""
        return behaviour.actions(self.states, self.settings.actions - 1, seed_of(self.settings.seed, "reference"))

    def kl(self, candidate: Candidate, actions: Tensor, reference: Tensor) -> Tensor:
        """Estimate the KL divergence from the behaviour policy in every state, (N,); 0 for the behaviour policy itself."""
        if candidate.name == "behaviour":
            return actions.new_zeros(len(actions))
        blur = torch.Generator(actions.device).manual_seed(seed_of(self.settings.seed, f"select/blur/{candidate.policy}"))
        return neighbour_kl(actions, reference, spread(reference), blur)

    def fitted(self, candidate: Candidate, actions: Tensor, network: CriticConfig, advance: Callable[[int], None]) -> Tensor:
        """Estimate (1 - gamma) Q^pi(s, a), the policy's average reward per step, by fitted Q evaluation, (N,)."""
        seed, steps = self.settings.seed, self.settings.fqe
        generator = torch.Generator(actions.device).manual_seed(seed_of(seed, "select/fqe"))  # shared: paired
        acting = candidate.acting(seed_of(seed, "fqe"))
        critic = fitted_q(self.data, self.others, acting, network, steps=steps, generator=generator, advance=advance)
        return (1 - network.gamma) * CriticEnsemble([critic])(self.states, actions)


def select(paths: Sequence[Path], settings: SelectionSettings, reporter: Reporter | None = None) -> Selection:
    """Judge the policies of the runs at or below ``paths``, and return the ranking.

    Raises UserError where the runs differ in task or data, where none has a behaviour policy, or where there is no critic.
    """
    reporter = reporter or Reporter()
    found, agents, data = usable(find(paths), settings.device, reporter)
    behaviours = behaviours_of(found, agents)
    candidates = list(_candidates(found.runs, agents, settings.omegas))
    case = _case(data, settings)
    reference = {path: case.reference(behaviour) for path, behaviour in behaviours.items()}
    critics = critics_of(found.runs, agents)
    ensemble = CriticEnsemble([critic for _, critic in critics])
    price, notes = _price(agents, ensemble, case, reference[found.runs[0].path])
    first = behaviours[found.runs[0].path]
    evidence: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    with reporter.bar("judging", (len(candidates) + 1) * max(1, settings.fqe)) as bar:
        value = _valued(case, ensemble, agents, bar.advance)
        base = value(first, case.actions(first))
        for candidate in candidates:
            actions = case.actions(candidate)
            kl = case.kl(candidate, actions, reference[candidate.run.path])
            evidence.setdefault((candidate.run.label, candidate.policy), []).append((value(candidate, actions) - base, kl))
    rows = [_judged(found.runs, run, policy, parts, settings, price) for (run, policy), parts in evidence.items()]
    judges = [f"fitted Q evaluation, {settings.fqe} steps"] if settings.fqe else [f"critic of {run.path}" for run, _ in critics]
    return _selection(found, rows, judges, price, notes)


Value: TypeAlias = Callable[[Candidate, Tensor], Tensor]
"""Values a candidate's actions (N, K, A): (N,)."""


def usable(found: Found, on: str, reporter: Reporter) -> tuple[Found, list[Agent], OfflineData]:
    """Return the usable runs, their trained agents on that device, and the data they share; damaged runs are left out.

    Raises UserError where the runs' data differ, or where no run can be used.
    """
    if strangers := [run for run in found.runs if run.config.get("experiment") != "offline_rl"]:
        raise UserError(f"{strangers[0].path} is a run of '{strangers[0].config.get('experiment')}', which has no policies")
    device = torch.device(pick_device(on))

    def settings(run: Run) -> RunConfig:
        return read_config(RunFolder(run.path)).model_copy(update={"device": device.type})

    found, configs = _whole(found, settings)
    _check_same_data(found.runs)
    set_up(device, configs[0].threads, configs[0].precision)
    data, _ = load_data(configs[0], device, reporter)
    of = {run.path: config for run, config in zip(found.runs, configs, strict=True)}

    def trained(run: Run) -> tuple[Agent, OfflineData]:
        own = of_run(RunFolder(run.path), data, reporter.warn)
        return restored(of[run.path], RunFolder(run.path), own, device), own

    found, whole = _whole(found, trained)
    return found, [agent for agent, _ in whole], whole[0][1]


def _whole(found: Found, read: Callable[[Run], T]) -> tuple[Found, list[T]]:
    """Return the runs that ``read`` succeeds on, with the results, and count the others as damaged. Raises UserError if none is
    left.
    """
    kept: dict[Path, T] = {}
    damaged = list(found.damaged)
    for run in found.runs:
        try:
            kept[run.path] = read(run)
        except UserError as error:
            damaged.append((run.path, str(error)))
    if not kept:
        raise UserError("no run can be used:\n" + "\n".join(f"  {path}: {reason}" for path, reason in damaged[:8]), key="RUNS")
    return replace(found, runs=[run for run in found.runs if run.path in kept], damaged=damaged), list(kept.values())


def _check_same_data(runs: Sequence[Run]) -> None:
    for run in runs:
        if differing := [
            key for key in _about_data(runs[0]) | _about_data(run) if run.config.get(key) != runs[0].config.get(key)
        ]:
            key = sorted(differing)[0]
            there, here = runs[0].config.get(key), run.config.get(key)
            raise UserError(
                f"{run.path} has {key} {here!r}, {runs[0].path} has {there!r}: give runs that learned from the same data"
            )


def _about_data(run: Run) -> set[str]:
    return {key for key in run.config if key == "task" or key.startswith("data.")} - {"data.download"}


def behaviours_of(found: Found, agents: Sequence[Agent]) -> dict[Path, Candidate]:
    """Return every run's behaviour policy; a run without one gets that of the first run that has one."""
    each = zip(found.runs, agents, strict=True)
    own = {run.path: Candidate(run, agent, "behaviour", []) for run, agent in each if "behaviour" in agent.policies()}
    if not own:
        unused = "".join(f"\n  not used {path}: {reason}" for path, reason in found.left_out[:8])
        raise UserError(
            "none of the runs has a behaviour policy to measure the divergence from; add a run on the same data that has one, "
            f"such as aepo's{unused}",
            key="egd select",
        )
    first = next(iter(own.values()))
    return {run.path: own.get(run.path, first) for run in found.runs}


def _candidates(runs: Sequence[Run], agents: Sequence[Agent], omegas: Sequence[float] | None) -> Iterator[Candidate]:
    for run, agent in zip(runs, agents, strict=True):
        for name, scales in agent.scales(omegas).items():
            yield from (Candidate(run, agent, name, own) for own in ([[scale] for scale in scales] or [[]]))


def _case(data: OfflineData, settings: SelectionSettings) -> SelectionCase:
    held = held_out(len(data.transitions)).to(data.transitions.state.device)
    generator = torch.Generator(held.device).manual_seed(seed_of(settings.seed, "select/states"))
    rows = torch.nonzero(held).squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[: settings.states]]
    return SelectionCase(data, data.transitions.state[rows], torch.nonzero(~held).squeeze(1), settings)


def _valued(case: SelectionCase, ensemble: CriticEnsemble, agents: Sequence[Agent], advance: Callable[[int], None]) -> Value:
    if case.settings.fqe:
        configs = [agent.config for agent in agents]
        found = (c.critic for c in configs if isinstance(c, HasCriticConfig) and isinstance(c.critic, CriticConfig))
        network = next(found, CriticConfig())
        return lambda candidate, actions: case.fitted(candidate, actions, network, advance)
    if not ensemble.critics:
        raise UserError("none of the runs has a critic of states and actions; add --fqe STEPS", key="egd select")

    def value(candidate: Candidate, actions: Tensor) -> Tensor:
        advance(1)
        return ensemble(case.states, actions)

    return value


def critics_of(runs: Sequence[Run], agents: Sequence[Agent]) -> list[tuple[Run, Critic]]:
    """Return the runs' critics in reward units, or all critics where none is; a critic shared by several runs is
    returned once.
    """
    found = [(run, c) for run, agent in zip(runs, agents, strict=True) if (c := critic_of(agent)) is not None]
    comparable = [(run, critic) for run, critic in found if critic.in_reward_units] or found
    once: list[tuple[Run, Critic]] = []
    for run, critic in comparable:
        if not any(_same(critic, other) for _, other in once):
            once.append((run, critic))
    return once


def _same(a: Critic, b: Critic) -> bool:
    one, other = a.target.state_dict(), b.target.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _price(
    agents: Sequence[Agent], ensemble: CriticEnsemble, case: SelectionCase, reference: Tensor
) -> tuple[float, list[str]]:
    """Return the price of a nat, 1 / beta, or the critics' error; and notes for the user."""
    if case.settings.penalty == "error":
        if case.settings.fqe or not ensemble.critics:
            raise UserError("the error is that of the runs' own critics; leave --fqe out, or use --penalty kl", key="--penalty")
        return disagreement(ensemble.members(case.states, reference)), []
    own = [found for agent in agents if (found := temperature(agent)) is not None]
    beta, unit = own[0] if own else (None, 1.0)
    if case.settings.beta is not None:
        return unit / case.settings.beta, []
    if beta is None:
        raise UserError("none of the runs has a beta of its own; say what a nat is worth: --beta", key="--beta")
    differ = len({found[0] for found in own}) > 1
    note = f"the runs differ in beta: the price of a nat is that of the first one's, {beta:g}, for all; --beta takes another"
    return unit / beta, [note] if differ else []


def temperature(agent: Agent) -> tuple[float, float] | None:
    """Return beta of the agent's headline policy and the unit of its Q, or None where it has no beta."""
    name = agent.headline.partition("@")[0]
    known: Mapping[str, Tempered] = agent.config.tempered
    policy = known.get(name, known.get("guided"))
    if policy is None:
        return None
    if agent.calibration is None or policy.energy_scale == "raw":
        return policy.beta, 1.0
    return policy.beta, float(agent.calibration.advantage_std)


def _judged(
    runs: Sequence[Run],
    label: str,
    policy: str,
    parts: Sequence[tuple[Tensor, Tensor]],
    settings: SelectionSettings,
    price: float,
) -> Judged:
    """Return the score of a policy from its means over the run's seeds, in the states that all seeds share."""
    value, kl = (torch.stack(each).mean(0) for each in zip(*parts, strict=True))
    score = (cautious if settings.penalty == "error" else regularised)(value, kl, price)
    return Judged(label, policy, score, _simulated(runs, label, policy))


def _simulated(runs: Sequence[Run], label: str, policy: str) -> float | None:
    """Return the mean over seeds of the scores of the run's own rollouts, or None."""
    means = [s.mean for run in runs if run.label == label and (s := run.summary.policies.get(policy)) is not None]
    return sum(means) / len(means) if means else None


def _selection(found: Found, rows: Sequence[Judged], judges: Sequence[str], price: float, notes: Sequence[str]) -> Selection:
    first = found.runs[0]
    default = f"{first.label} {first.summary.headline}"
    chosen = choose({row.name: row.score for row in rows})
    by_default = {default: _simulated(found.runs, first.label, first.summary.headline)}  # included even if it was not judged
    cost = regret(by_default | {row.name: row.simulated for row in rows}, chosen, default)
    lost = [row.name for row in rows if not math.isfinite(row.score.score)]
    notes = [*notes, *(f"{name} is left out of the choice: its actions, or their values, are no numbers" for name in lost)]
    return Selection(first.summary.task, rows, chosen, default, cost, price, judges, found.skipped, found.damaged, notes)

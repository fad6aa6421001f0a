"""One run: its settings and place, its training and what is left of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from egd.runs.folder import RunFolder
from egd.runs.grid import Cell, run_label
from egd.runs.phases import Phase, seed_of
from egd.runs.summaries import read_metrics
from egd.samplers.watching import clips_of
from rl.agents.base import Agent
from rl.evaluation.evaluator import Evaluator
from rl.evaluation.results import statistics
from rl.evaluation.rollouts import Rollouts
from rl.runs.config import RunConfig
from rl.runs.vitals import VITALS, vitals
from rl.tasks import Task

NOTHING = Rollouts({}, {}, 0)
CALLS = 11  # of a policy, to say what one takes


@dataclass(frozen=True)
class Planned:
    """A run to be: its settings, its folder, and its cell where it is one of a grid."""

    config: RunConfig
    folder: RunFolder
    cell: Cell = field(default_factory=dict)
    method: str = ""
    """Its name in a recipe of several."""

    @property
    def title(self) -> str:
        """Its task, and its method where the recipe has several."""
        return f"{self.config.task} {self.method}".strip()

    @property
    def label(self) -> str:
        """For people."""
        return run_label(self.title, self.cell, self.config.seed)


@dataclass(frozen=True)
class Run:
    """One run in training and evaluation."""

    agent: Agent
    planned: Planned
    task: Task
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    not_evaluated: str = ""
    """Why there is nothing to evaluate in."""
    reused: dict[str, str] = field(default_factory=dict)
    """Phases that were taken from the store, and their keys there."""

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return self.planned.config

    @property
    def label(self) -> str:
        """For people."""
        return self.planned.label

    def phases(self) -> list[Phase]:
        """The agent's, with the evaluations in mid-training that the recipe wants."""
        phases = [replace(phase, vitals=partial(vitals, self.agent, phase.name)) for phase in self.agent.phases()]
        every = self.config.evaluation.every
        if not every or self.not_evaluated:
            return phases
        last = self.agent.evaluation_phase(phases)
        made = None if last.cache_key is None else {"evaluated": self._evaluated(), "after": last.cache_key}
        hooked = replace(last, hook=lambda step: self._interim(last.name), hook_every=every, cache_key=made)
        return [hooked if p is last else p for p in phases]

    def _action_ms(self) -> float:
        """Of one action of the headline in one state, eager."""
        agent, act = self.agent, self.agent.acting(0)
        state, which = agent.data.transitions.state[:1], torch.zeros(1, dtype=torch.long, device=agent.device)
        times = [_seconds(lambda: act(state, which).cpu()) for _ in range(CALLS)]
        return 1000 * median(times)

    def _evaluated(self) -> Any:
        """What decides the evaluations in mid-training."""
        how = {"device", "threads", "compile", "checkpoint_minutes"}
        return self.config.model_dump(mode="json", exclude={*how, "variants", "method"})

    def _interim(self, phase: str) -> dict[str, Any]:
        """A headline evaluation in mid-training."""
        agent, (name, _, scale) = self.agent, self.agent.headline.partition("@")
        agent.ready(phase, torch.Generator(agent.device).manual_seed(self.config.seed))
        scales = {name: [float(scale)] if scale else []}
        result = Evaluator(agent, self.task).run(scales, episodes=self.config.evaluation.episodes, seed=self.config.seed)
        return {"phase": phase, "score": statistics(self.task, result.returns[agent.headline])["mean"]}

    def finish(self, result: Rollouts | None) -> list[str]:
        """Diagnostics, figures and summary, from the rollouts of its evaluation, if there was one. Returns what people should
        look at.
        """
        agent, folder = self.agent, self.planned.folder
        diagnostics = agent.diagnostics(torch.Generator(agent.device).manual_seed(seed_of(self.config.seed, "diagnostics")))
        if result is None:
            folder.write_summary({**self._summary(NOTHING), "not_evaluated": self.not_evaluated, "diagnostics": diagnostics})
            return agent.warnings(diagnostics)
        agent.save_figures(folder.figures, self.label, self.task, result)
        folder.write_summary(self._summary(result) | {"diagnostics": diagnostics})
        left = [
            f"{name}: in {n} of {result.env_steps} steps its action left [-1, 1] and was clipped"
            for name, n in result.clipped.items()
        ]
        clips = [f"{name}: {text}" for name, shares in result.sampling.items() if (text := clips_of(shares))]
        return [*agent.warnings(diagnostics), *left, *clips]

    def _summary(self, result: Rollouts) -> dict[str, Any]:
        config, agent, task, seconds = self.config, self.agent, self.task, self.seconds
        policies = {name: statistics(task, returns) for name, returns in result.returns.items()}
        trained = agent.evaluation_phase(agent.phases())
        last = {"phase": trained.name, "step": trained.steps}
        evaluations = [*self.notes, {**last, "score": policies[agent.headline]["mean"]}] if policies else []
        return {
            "task": config.task,
            "algorithm": config.agent,
            "method": config.method,
            "seed": config.seed,
            "device": device_name(agent.device),
            "versions": {name: version(name) for name in ("egd", "torch", "gymnasium", "minari", "numpy")},
            "dataset_score": task.score(agent.data.dataset_return),
            "normalised": task.reference is not None,
            "headline": agent.headline,
            "policies": policies,
            "clipped_actions": result.clipped,
            "sampling": result.sampling,
            "best": max(evaluations, key=lambda n: n["score"], default=None),
            "evaluations": evaluations,
            "seconds": {**seconds, "evaluation_env_step": seconds.get("evaluation", 0.0) / max(1, result.env_steps)},
            "reused": self.reused,
            "vitals": _last_vitals(read_metrics(self.planned.folder.metrics)),
            "action_ms": self._action_ms(),
            "remarks": [task.env_note] if task.env_note else [],
        }


def _last_vitals(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By phase, those of its end: whether training went astray."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if seen := {name: row[name] for name in VITALS if name in row}:
            found[row["phase"]] = seen
    return found


def _seconds(f: Callable[[], object]) -> float:
    started = time.perf_counter()
    f()
    return time.perf_counter() - started


def device_name(device: torch.device) -> str:
    """For the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"

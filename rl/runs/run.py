"""One run: its settings and folder, its training, and its results."""

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
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from egd.config.base import EXECUTION, marked
from egd.runs.folder import RunFolder
from egd.runs.grid import Cell, run_label
from egd.runs.phase import Phase, seed_of
from egd.runs.summaries import read_metrics
from egd.samplers.watching import clips_of, named
from rl.agents.base import Agent
from rl.config import RunConfig
from rl.evaluation.evaluator import Evaluator
from rl.evaluation.results import statistics
from rl.evaluation.rollouts import Rollouts
from rl.runs.vitals import VITALS, vitals
from rl.tasks import Task

NOTHING = Rollouts({}, {}, 0)
CALLS = 11  # number of calls by which the time of a policy's action is measured


@dataclass(frozen=True)
class Planned:
    """Planned run: its settings, its folder, and its cell if it belongs to a grid."""

    config: RunConfig
    folder: RunFolder
    cell: Cell = field(default_factory=dict)
    method: str = ""
    """Name of the method in a recipe of several."""

    @property
    def title(self) -> str:
        """Name of the task, and of the method where the recipe has several."""
        return f"{self.config.task} {self.method}".strip()

    @property
    def label(self) -> str:
        """Description of the run for users."""
        return run_label(self.title, self.cell, self.config.seed)


class InterimEvaluation(BaseModel):
    """Evaluation of the headline in the middle of a phase."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    step: NonNegativeInt
    phase: str
    score: float


@dataclass(frozen=True)
class OfflineRun:
    """Run in training and evaluation."""

    agent: Agent
    planned: Planned
    task: Task
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    not_evaluated: str = ""
    """Reason why there is no environment to evaluate in, or an empty string."""
    reused: dict[str, str] = field(default_factory=dict)
    """Phases that were taken from the store, with their keys in it."""

    @property
    def config(self) -> RunConfig:
        """Settings of the run."""
        return self.planned.config

    @property
    def label(self) -> str:
        """Description of the run for users."""
        return self.planned.label

    def phases(self) -> list[Phase]:
        """Return the agent's phases, with the recipe's evaluations in mid-training."""
        phases = [replace(phase, vitals=partial(vitals, self.agent, phase.name)) for phase in self.agent.phases()]
        every = self.config.evaluation.every
        if not every or self.not_evaluated:
            return phases
        last = self.agent.evaluation_phase(phases)
        made = None if last.cache_key is None else {"evaluated": self._evaluated(), "after": last.cache_key}
        hooked = replace(
            last, hook=lambda step: self._interim(last.name), hook_every=every, note=InterimEvaluation, cache_key=made
        )
        return [hooked if p is last else p for p in phases]

    def _action_ms(self) -> float:
        """Measure the time of one action of the headline policy in one state, without compilation, in milliseconds."""
        agent, act = self.agent, self.agent.acting(0)
        state, scale_index = agent.data.transitions.state[:1], torch.zeros(1, dtype=torch.long, device=agent.device)
        with named(agent.headline):  # so that what the rollouts have warned of is the same text, and is not said again
            times = [_seconds(lambda: act(state, scale_index).cpu()) for _ in range(CALLS)]
        return 1000 * median(times)

    def _evaluated(self) -> Any:
        """Return the settings that decide the evaluations in mid-training."""
        others = {"variants": True, "method": True}
        return self.config.model_dump(mode="json", exclude=marked(self.config, EXECUTION) | others)

    def _interim(self, phase: str) -> dict[str, Any]:
        """Evaluate the headline policy in mid-training, and return its score."""
        agent, (name, _, scale) = self.agent, self.agent.headline.partition("@")
        agent.ready(phase, torch.Generator(agent.device).manual_seed(self.config.seed))
        scales = {name: [float(scale)] if scale else []}
        result = Evaluator(agent, self.task).run(scales, episodes=self.config.evaluation.episodes, seed=self.config.seed)
        return {"phase": phase, "score": statistics(self.task, result.returns[agent.headline])["mean"]}

    def finish(self, result: Rollouts | None) -> list[str]:
        """Compute diagnostics, save figures and write the summary, from the rollouts if there were any; return warnings for
        users.
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
    """Return, by phase, the vitals at its end, which show whether training diverged."""
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
    """Return the name of the device for the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"

"""One run: its settings and place, its training and what is left of it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from egd.many import Cell, run_label
from egd.phases import Phase, seed_of
from egd.runs import RunFolder
from rl import figures
from rl.agents.aepo import AEPO, component_parts
from rl.config import RunConfig
from rl.diagnostics import diagnose
from rl.evaluation import Rollouts
from rl.evaluator import Evaluator
from rl.results import split_by_omega, statistics
from rl.tasks import Task


@dataclass(frozen=True)
class Planned:
    """A run to be: its settings, its folder, and its cell where it is one of a grid."""

    config: RunConfig
    folder: RunFolder
    cell: Cell = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people."""
        return run_label(self.config.task, self.cell, self.config.seed)


@dataclass(frozen=True)
class Run:
    """One run in training and evaluation."""

    agent: AEPO
    planned: Planned
    task: Task
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

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
        phases = self.agent.phases()
        every = self.config.evaluation.every
        if not every:
            return phases
        last = last_phase(phases)
        hooked = Phase(last.name, last.steps, last.learner, lambda step: self._interim(last.name), every)
        return [hooked if p is last else p for p in phases]

    def _interim(self, phase: str) -> dict[str, Any]:
        """A headline evaluation in mid-training; while the critic trains, calibrated for the occasion."""
        agent, task = self.agent, self.task
        if phase == "critic" or not agent.calibration.moments:
            agent.calibration.update(torch.Generator(agent.device).manual_seed(self.config.seed))
        omegas = {"guided": [self.config.guidance.omega]}
        result = Evaluator(agent, task).run(omegas, episodes=self.config.evaluation.episodes, seed=self.config.seed)
        guided = next(v for k, v in result.returns.items() if k != "behaviour")
        return {"phase": phase, "score": statistics(task, guided)["mean"]}

    def finish(self, result: Rollouts) -> list[str]:
        """Diagnostics, figures and summary, from the rollouts of its evaluation. Returns what people should look at."""
        agent = self.agent
        diagnostics = diagnose(agent, torch.Generator(agent.device).manual_seed(seed_of(self.config.seed, "diagnostics")))
        summary = self._summary(result) | {"diagnostics": diagnostics}
        self._figures(result, summary)
        self.planned.folder.write_summary(summary)
        return list(self._clamped(diagnostics["posterior_clamped_share"]))

    def _clamped(self, shares: Mapping[str, float]) -> Iterator[str]:
        """A clamp that acts is reported, for the posteriors that an arm uses."""
        for name, arm in self.config.arms.items():
            share = shares.get(("clipped_" if arm.clip_x0 else "") + arm.posterior.name, 0.0)  # Tweedie's is not clamped over t
            if share and "posterior" in component_parts(arm):
                yield (
                    f"{name}: its {arm.posterior.name} variance was clamped at {100 * share:.0f} % of the times; "
                    "see posterior_variance.png and docs/diagnostics.md"
                )

    def _summary(self, result: Rollouts) -> dict[str, Any]:
        config, agent, task, seconds, notes = self.config, self.agent, self.task, self.seconds, self.notes
        by_arm = {name: split_by_omega(task, result.returns, name) for name in config.arms}
        behaviour = statistics(task, result.returns["behaviour"])

        def own(name: str) -> dict[str, Any]:
            """At the arm's own guidance scale; 0 is the behaviour policy."""
            return by_arm[name].get(f"{config.arms[name].omega:g}") or behaviour

        headline = own("guided")
        trained = last_phase(agent.phases())
        last = {"step": trained.steps, "phase": trained.name, "score": headline["mean"]}
        return {
            "task": config.task,
            "method": config.method,
            "seed": config.seed,
            "device": device_name(agent.device),
            "versions": {name: version(name) for name in ("egd", "torch", "gymnasium", "minari", "numpy")},
            "dataset_score": task.score(agent.data.dataset_return),
            "normalised": task.reference is not None,
            "behaviour": behaviour,
            "guided": headline,
            "guided_by_omega": by_arm["guided"],
            "variants": {name: {"guided": own(name), "guided_by_omega": by_arm[name]} for name in config.variants},
            "best": max([*notes, last], key=lambda n: n["score"]),
            "seconds": {**seconds, "evaluation_env_step": seconds["evaluation"] / max(1, result.env_steps)},
        }

    def _figures(self, result: Rollouts, summary: dict[str, Any]) -> None:
        agent, task, folder, label = self.agent, self.task, self.planned.folder.figures, self.label
        figures.posterior_figure(agent, folder / "posterior_variance.png", label)
        by_arm = {"guided": summary["guided_by_omega"], **{k: v["guided_by_omega"] for k, v in summary["variants"].items()}}
        figures.omega_figure(by_arm, summary["behaviour"], folder / "omega.png", label)
        if task.family == "maze2d":
            chosen = {
                "behaviour": "behaviour",
                **{f"{n}@{g.omega:g}": f"{n} ({g.energy.name})" for n, g in self.config.arms.items()},
            }
            paths = {key: [np.array(w) for w in result.paths[key] if w] for key in chosen if key in result.paths}
            titles = {
                key: f"{name}: score {statistics(task, result.returns[key])['mean']:.1f}"
                for key, name in chosen.items()
                if key in paths
            }
            figures.maze_figure(agent, task.env_kwargs["map_name"], paths, titles, folder / "maze.png")


def last_phase(phases: list[Phase]) -> Phase:
    """The last one that trains something: its steps are those that evaluations are counted in."""
    return next(p for p in reversed(phases) if p.name != "calibration")


def device_name(device: torch.device) -> str:
    """For the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"

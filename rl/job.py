"""Runs of one task, from data to summaries."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from egd.experiments import Row
from egd.phases import Phase, PhaseRun, restored_metrics_size, run_phases, seed_of
from egd.progress import Reporter
from egd.runs import RunFolder
from rl import figures
from rl.agents import AGENTS
from rl.agents.aepo import AEPO, component_parts
from rl.config import RunConfig
from rl.diagnostics import diagnose
from rl.envs import check_env
from rl.evaluation import Rollouts
from rl.evaluator import Evaluator, scales
from rl.loading import load_data
from rl.results import rows, split_by_omega, statistics
from rl.tasks import Task

PATHS = 8  # paths kept for the maze figure


@dataclass(frozen=True)
class OfflineJob:
    """Runs of one task that differ in seed or in numbers alone, and their folders: their parts are trained together."""

    configs: list[RunConfig]
    folders: list[RunFolder]
    resume: bool

    @property
    def label(self) -> str:
        """For people."""
        seeds = ", ".join(str(config.seed) for config in self.configs)
        return f"{self.configs[0].task} seed{'s' if len(self.configs) > 1 else ''} {seeds}"

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not trained yet, evaluate, write the summaries; a complete run only shows its result."""
        torch.set_num_threads(self.configs[0].threads)
        self.configs[0].computing.allow_tf32()
        for config, folder in zip(self.configs, self.folders, strict=True):
            folder.open(config.model_dump(mode="json"), resume=self.resume)
        summaries = [folder.read_summary() for folder in self.folders]
        open_ones = [i for i, summary in enumerate(summaries) if summary is None]
        for i, summary in zip(open_ones, self._train(open_ones, reporter), strict=True):
            summaries[i] = summary
        return [row for summary in summaries if summary is not None for row in rows(summary)]

    def _train(self, which: Sequence[int], reporter: Reporter) -> list[dict[str, Any]]:
        if not which:
            return []
        started = time.perf_counter()
        configs, folders = [self.configs[i] for i in which], [self.folders[i] for i in which]
        device = torch.device(configs[0].device)
        for folder in folders:
            folder.truncate_metrics(restored_metrics_size(folder))
        data, task = load_data(configs[0], device, reporter)
        check_env(task, data.transitions.state.shape[1], data.transitions.action.shape[1])
        runs = [Run(AGENTS[c.method](c, data, device), c, folder, task) for c, folder in zip(configs, folders, strict=True)]
        for run in runs:
            run.seconds["data"] = (time.perf_counter() - started) / len(runs)
        for phases in zip(*(run.phases() for run in runs), strict=True):
            self._phase(runs, phases, device, reporter)
        return [run.finish(reporter) for run in runs]

    def _phase(self, runs: Sequence[Run], phases: Sequence[Phase], device: torch.device, reporter: Reporter) -> None:
        config = runs[0].config
        every = {"checkpoint_every": config.checkpoint_every, "log_every": config.log_every}
        parts = [PhaseRun(phase, run.folder, run.config.seed) for phase, run in zip(phases, runs, strict=True)]
        for run, phase, progress in zip(runs, phases, run_phases(parts, reporter, device=device, **every), strict=True):
            run.seconds[phase.name] = progress.seconds
            run.notes.extend(progress.notes)


@dataclass(frozen=True)
class Run:
    """One run in training and evaluation."""

    agent: AEPO
    config: RunConfig
    folder: RunFolder
    task: Task
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)

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

    def finish(self, reporter: Reporter) -> dict[str, Any]:
        """Diagnostics, evaluation, figures and summary."""
        agent, task, seconds = self.agent, self.task, self.seconds
        config = self.config
        diagnostics = diagnose(agent, torch.Generator(agent.device).manual_seed(seed_of(config.seed, "diagnostics")))
        started = time.perf_counter()
        omegas = scales(config)
        total = config.evaluation.episodes * (1 + sum(map(len, omegas.values())))
        with reporter.bar("evaluation", total) as bar:
            result = Evaluator(agent, task).run(
                omegas, episodes=config.evaluation.episodes, seed=config.seed, advance=bar.advance, paths=PATHS
            )
        seconds["evaluation"] = time.perf_counter() - started
        summary = self._summary(result) | {"diagnostics": diagnostics}
        self._figures(result, summary)
        self.folder.write_summary(summary)
        self._warn(diagnostics["posterior_clamped_share"], reporter)
        return summary

    def _warn(self, shares: Mapping[str, float], reporter: Reporter) -> None:
        """A clamp that acts is reported, for the posteriors that an arm uses."""
        for name, arm in self.config.arms.items():
            share = shares.get(("clipped_" if arm.clip_x0 else "") + arm.posterior.name, 0.0)  # Tweedie's is not clamped over t
            if share and "posterior" in component_parts(arm):
                reporter.console.print(
                    f"[yellow]{name}: its {arm.posterior.name} variance was clamped at {100 * share:.0f} % of the times; "
                    "see posterior_variance.png and docs/diagnostics.md",
                    soft_wrap=True,
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
        agent, task, folder = self.agent, self.task, self.folder.figures
        label = f"{self.config.task} seed {self.config.seed}"
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

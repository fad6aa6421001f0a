"""One run: a task and a seed, from data to summary."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from egd.components import Registry, build
from egd.experiments import Row
from egd.phases import Phase, Progress, restored_metrics_size, run_phase, seed_of
from egd.progress import Reporter
from egd.runs import RunFolder
from rl import figures
from rl.agents import AGENTS
from rl.agents.aepo import AEPO, component_parts
from rl.config import GuidanceConfig, RunConfig
from rl.data import Episodes, OfflineData, is_local, load_episodes, relabel, to_offline_data, window_return
from rl.diagnostics import diagnose
from rl.envs import env_factory
from rl.evaluation import Arm, Rollouts, rollout
from rl.tasks import Task, find_task

GENERATORS = Registry("generator", "rl.generators")
PATHS = 8  # paths kept for the maze figure


def load_data(config: RunConfig, device: torch.device | str, reporter: Reporter | None = None) -> tuple[OfflineData, Task]:
    """The task's transitions on the device; a dataset with a generator is made where it is missing."""
    task = find_task(config.task)
    names = config.data.datasets or task.datasets
    _generate(config, names, reporter or Reporter())
    episodes = load_episodes(names, task.observation_keys, download=config.data.download)
    if task.goal_reward:
        episodes = relabel(task, episodes)
    return _offline(config, task, episodes, device), task


def _generate(config: RunConfig, names: Sequence[str], reporter: Reporter) -> None:
    generator = config.data.generator
    if generator is None or is_local(names[0]):
        return
    steps = int(generator.spec.settings.get("steps", 100_000))
    with reporter.bar(f"make {names[0]}", steps) as bar:
        parts = {"dataset_id": names[0], "progress": lambda done: bar.advance(done - bar.done)}
        build(GENERATORS, generator.spec, parts, "data.generator")


def _offline(config: RunConfig, task: Task, episodes: Episodes, device: torch.device | str) -> OfflineData:
    d = config.data
    return to_offline_data(
        episodes,
        window_return(episodes, task.max_steps, task.goal_reward),
        scale=d.reward_scale,
        shift=d.reward_shift,
        standardise=d.standardise_states,
        device=device,
    )


def statistics(task: Task, returns: Any) -> dict[str, Any]:
    """Mean and standard deviation of normalised scores, with every episode's."""
    scores = [task.score(float(r)) for r in returns]
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "episodes": len(scores),
        "returns": scores,
        "raw_returns": [float(r) for r in returns],
    }


@dataclass(frozen=True)
class Evaluator:
    """Rolls out the behaviour policy and every arm at its guidance scales, all at once."""

    agent: AEPO
    task: Task

    def run(
        self,
        omegas: Mapping[str, Sequence[float]],
        *,
        episodes: int,
        seed: int,
        advance: Callable[[int, str], None] | None = None,
        paths: int = 0,
    ) -> Rollouts:
        """Returns by arm: 'behaviour' and '<arm>@<omega>'. The seed is not the training's."""
        config, agent = self.agent.config, self.agent

        def own(name: str) -> torch.Generator:
            """An arm's random numbers do not depend on which others are there."""
            return torch.Generator(agent.device).manual_seed(seed_of(seed, f"evaluation/{name}"))

        arms = [Arm(["behaviour"], agent.policy("behaviour", [], own("behaviour")))]
        for name, scales in omegas.items():
            arms.append(Arm([f"{name}@{omega:g}" for omega in scales], agent.policy(name, scales, own(name))))
        return rollout(
            env_factory(self.task, self.task.observation_keys),
            arms,
            agent.data.standardise,
            episodes=episodes,
            envs=config.evaluation.envs,
            seed=10_000 + 1000 * seed,
            device=agent.device,
            advance=advance,
            paths=paths,
        )


def scales(config: RunConfig, only: Sequence[float] | None = None) -> dict[str, list[float]]:
    """The guidance scales of every arm: its own and its further ones, or ``only``. Without 0: that is the behaviour policy,
    unless the arm also selects among candidates.
    """

    def wanted(g: GuidanceConfig) -> list[float]:
        omegas = [g.omega, *g.omegas] if only is None else only
        return list(dict.fromkeys(omega for omega in omegas if omega > 0 or g.candidates > 1))

    return {name: found for name, g in config.arms.items() if (found := wanted(g))}


def split_by_omega(task: Task, returns: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """omega -> statistics of one arm."""
    head = f"{name}@"
    return {key.removeprefix(head): statistics(task, r) for key, r in returns.items() if key.startswith(head)}


@dataclass(frozen=True)
class OfflineJob:
    """One run and its folder."""

    config: RunConfig
    folder: RunFolder
    resume: bool

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.config.task} seed {self.config.seed}"

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not trained yet, evaluate, write the summary; a complete run only shows its result."""
        torch.set_num_threads(self.config.threads)
        self.folder.open(self.config.model_dump(mode="json"), resume=self.resume)
        summary = self.folder.read_summary()
        return rows(summary or self._train(reporter))

    def _train(self, reporter: Reporter) -> dict[str, Any]:
        started = time.perf_counter()
        device = torch.device(self.config.device)
        self.folder.truncate_metrics(restored_metrics_size(self.folder))
        data, task = load_data(self.config, device, reporter)
        agent = AGENTS[self.config.method](self.config, data, device)
        seconds = {"data": time.perf_counter() - started}
        progress = {phase.name: self._phase(phase, device, reporter) for phase in self._phases(agent, task)}
        seconds |= {name: p.seconds for name, p in progress.items()}
        return self._finish(agent, task, seconds, [n for p in progress.values() for n in p.notes], reporter)

    def _phases(self, agent: AEPO, task: Task) -> list[Phase]:
        phases = agent.phases()
        every = self.config.evaluation.every
        if not every:
            return phases
        last = phases[-1] if phases[-1].name != "calibration" else phases[-2]
        hooked = Phase(last.name, last.steps, last.learner, lambda step: self._interim(agent, task), every)
        return [hooked if p is last else p for p in phases]

    def _interim(self, agent: AEPO, task: Task) -> dict[str, Any]:
        """A headline evaluation in mid-training, on variances estimated for the occasion if there are none yet."""
        if not agent.calibration.moments:
            agent.calibration.update(torch.Generator(agent.device).manual_seed(self.config.seed))
        omegas = {"guided": [self.config.guidance.omega]}
        result = Evaluator(agent, task).run(omegas, episodes=self.config.evaluation.episodes, seed=self.config.seed)
        guided = next(v for k, v in result.returns.items() if k != "behaviour")
        return {"score": statistics(task, guided)["mean"]}

    def _phase(self, phase: Phase, device: torch.device, reporter: Reporter) -> Progress:
        return run_phase(
            phase,
            self.folder,
            reporter,
            seed=self.config.seed,
            device=device,
            checkpoint_every=self.config.checkpoint_every,
            log_every=self.config.log_every,
        )

    def _finish(
        self, agent: AEPO, task: Task, seconds: dict[str, float], notes: list[dict[str, Any]], reporter: Reporter
    ) -> dict[str, Any]:
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
        summary = self._summary(agent, task, result, seconds, notes) | {"diagnostics": diagnostics}
        self._figures(agent, task, result, summary)
        self.folder.write_summary(summary)
        self._warn(diagnostics["posterior_clamped_share"], reporter)
        return summary

    def _warn(self, shares: Mapping[str, float], reporter: Reporter) -> None:
        """A clamp that acts is reported, for the posteriors that an arm uses."""
        for name, arm in self.config.arms.items():
            share = shares[("clipped_" if arm.clip_x0 else "") + arm.posterior]
            if share and "posterior" in component_parts(arm):
                reporter.console.print(
                    f"[yellow]{name}: its {arm.posterior} variance was clamped at {100 * share:.0f} % of the times; "
                    "see posterior_variance.png and docs/diagnostics.md",
                    soft_wrap=True,
                )

    def _summary(
        self, agent: AEPO, task: Task, result: Rollouts, seconds: dict[str, float], notes: list[dict[str, Any]]
    ) -> dict[str, Any]:
        config = self.config
        by_arm = {name: split_by_omega(task, result.returns, name) for name in config.arms}
        behaviour = statistics(task, result.returns["behaviour"])

        def own(name: str) -> dict[str, Any]:
            """At the arm's own guidance scale; 0 is the behaviour policy."""
            return by_arm[name].get(f"{config.arms[name].omega:g}") or behaviour

        headline = own("guided")
        last = {"step": sum(p.steps for p in agent.phases()), "score": headline["mean"]}
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

    def _figures(self, agent: AEPO, task: Task, result: Rollouts, summary: dict[str, Any]) -> None:
        folder = self.folder.figures
        figures.posterior_figure(agent, folder / "posterior_variance.png", self.label)
        by_arm = {"guided": summary["guided_by_omega"], **{k: v["guided_by_omega"] for k, v in summary["variants"].items()}}
        figures.omega_figure(by_arm, summary["behaviour"], folder / "omega.png", self.label)
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


def device_name(device: torch.device) -> str:
    """For the summary."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """The results table: one row for behaviour, one for every arm and guidance scale."""
    first = {"task": summary["task"], "seed": str(summary["seed"]), "data": f"{summary['dataset_score']:.1f}"}

    def row(name: str, omega: str, s: Mapping[str, Any]) -> Row:
        error = s["std"] / s["episodes"] ** 0.5
        score = f"{s['mean']:.1f} ± {error:.1f}"
        return {**first, "policy": name, "omega": omega, "score ± s.e.": score, "n": str(s["episodes"])}

    result = [row("behaviour", "0", summary["behaviour"])]
    result += [row("guided", omega, s) for omega, s in summary["guided_by_omega"].items()]
    for name, variant in summary["variants"].items():
        result += [row(name, omega, s) for omega, s in variant["guided_by_omega"].items()]
    return result

"""Jobs: runs of one task, from data to summaries."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from egd.runs.experiment import Row
from egd.runs.grid import RunsFailed, in_cell, kept, runs_label
from egd.runs.phase import Phase, PhaseRun, key_of
from egd.runs.phase_files import settle
from egd.runs.phases import run_phases
from egd.runs.progress import Reporter
from egd.runs.safe_names import literal
from egd.runs.store import Store
from egd.runs.summaries import Summary
from egd.training.precision import set_up
from rl.agents import agent_class
from rl.data.record import begin
from rl.data.transitions import OfflineData
from rl.envs.making import check_env
from rl.envs.specs import NoEnvironment
from rl.evaluation.evaluator import environments, evaluate_together, watched
from rl.evaluation.results import rows
from rl.evaluation.rollouts import Rollouts
from rl.runs.loading import check_room, load_data
from rl.runs.run import OfflineRun, Planned

PATHS = 8  # number of paths kept for the maze figure
ENVIRONMENTS = 1000  # maximum in one evaluation of several runs: a simulator takes up to 10 MB

Failures = dict[str, Exception]
Started = tuple[OfflineRun, Phase]


@dataclass(frozen=True)
class OfflineJob:
    """Runs of one task that can be trained together, because they differ only in seed, in numbers or in evaluation."""

    planned: list[Planned]
    resume: bool
    store: Store | None = None
    """Store of finished phases; None to train all anew."""

    @property
    def label(self) -> str:
        """Description of the job for users."""
        each = [(p.cell, p.config.seed) for p in self.planned]
        return runs_label(self.planned[0].title, each)

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.planned)

    def run(self, reporter: Reporter) -> list[Row]:
        """Train what is not yet trained, evaluate, write the summaries, and return the results; a complete run only returns its
        result.

        A run that fails does not stop the others: RunsFailed is raised at the end.
        """
        first = self.planned[0].config
        set_up(first.device, first.threads, first.precision)
        failures: Failures = {}
        with ExitStack() as locks:
            for planned in self.planned:
                with kept(failures, planned.label):
                    locks.enter_context(planned.folder.lock())
                    _open(planned, self.resume, reporter)
            opened = [p for p in self.planned if p.label not in failures]
            if todo := [p for p in opened if p.folder.read_summary(Summary) is None]:
                self._complete(todo, failures, reporter)
        table = [row for p in opened if (s := p.folder.read_summary(Summary)) is not None for row in in_cell(rows(s), p.cell)]
        if failures:
            raise RunsFailed(table, failures)
        return table

    def _complete(self, todo: Sequence[Planned], failures: Failures, reporter: Reporter) -> None:
        runs = self._prepare(todo, failures, reporter)
        for phases in zip(*(run.phases() for run in runs), strict=True):
            self._train([pair for pair in zip(runs, phases, strict=True) if pair[0].label not in failures], failures, reporter)
        warnings: dict[str, list[str]] = {}
        for run, result in self._results([run for run in runs if run.label not in failures], failures, reporter):
            with kept(failures, run.label):
                for warning in run.finish(result):
                    warnings.setdefault(warning, []).append(run.label)
        for warning, (first, *more) in warnings.items():
            label = first + (f" and {len(more)} more" if more else "")
            reporter.warn(f"{label}, {warning}")

    def _results(
        self, runs: Sequence[OfflineRun], failures: Failures, reporter: Reporter
    ) -> Iterator[tuple[OfflineRun, Rollouts | None]]:
        """Yield the runs with their rollouts, or with None where there is no environment."""
        yield from ((run, None) for run in runs if run.not_evaluated)
        for together in _passes([run for run in runs if not run.not_evaluated]):
            yield from _evaluate(together, failures, reporter)

    def _train(self, going: Sequence[Started], failures: Failures, reporter: Reporter) -> None:
        """Train one phase of all runs, or take it from the store; runs that need the same result train it once."""
        firsts: dict[str, Started] = {}
        for run, phase in going:
            firsts.setdefault(key_of(phase.cache_key or run.label), (run, phase))
        rest = [pair for pair in going if pair not in firsts.values()]
        for together in (list(firsts.values()), rest) if self.store else (going,):
            self._take(together, reporter)
            _train(together, failures, reporter)
            self._put([pair for pair in together if pair[0].label not in failures], reporter)
        if count := sum(phase.name in run.reused for run, phase in going):
            reporter.console.print(literal(f"{going[0][1].name}: {count} of {len(going)} trained before", "dim"))

    def _take(self, pairs: Sequence[Started], reporter: Reporter) -> None:
        for run, phase in pairs:
            if self.store is not None and (key := self.store.take(phase, run.planned.folder, reporter.warn)):
                run.reused[phase.name] = key

    def _put(self, pairs: Sequence[Started], reporter: Reporter) -> None:
        if self.store is None:
            return
        try:
            for run, phase in pairs:
                self.store.put(phase, run.planned.folder)
        except OSError as error:
            remedy = "set EGD_STORE to a folder that can be written, or to nothing"
            reporter.warn(f"{pairs[0][1].name} is not kept for other runs: {error}; {remedy}")

    def _prepare(self, todo: Sequence[Planned], failures: Failures, reporter: Reporter) -> list[OfflineRun]:
        """Load the data, and return fresh runs, but for those whose data changed since their training began."""
        started = time.perf_counter()
        config = todo[0].config
        device = torch.device(config.device)
        data, task = load_data(config, device, reporter)
        check_room([planned.config for planned in todo], data)
        sizes = data.transitions.state.shape[1], data.transitions.action.shape[1]
        kind, not_evaluated = agent_class(config.agent), ""
        try:
            check_env(task, *sizes, dataset=(config.data.datasets or task.datasets)[0])
        except NoEnvironment as error:
            if kind.learns_online:
                raise
            not_evaluated = str(error)
            reporter.warn(f"{self.label} is trained, but not evaluated: {error}")
        known: list[tuple[Planned, OfflineData]] = []
        for planned in todo:
            with kept(failures, planned.label):
                known.append((planned, begin(planned.folder, data, reporter.warn)))
        runs = [
            OfflineRun(kind(planned.config, own, device), planned, task, not_evaluated=not_evaluated) for planned, own in known
        ]
        seconds = (time.perf_counter() - started) / len(todo)
        for run in runs:
            run.seconds["data"] = seconds
        return runs


def _open(planned: Planned, resume: bool, reporter: Reporter) -> None:
    folder = planned.folder
    folder.open(planned.config.model_dump(mode="json"), resume=resume)
    if folder.read_summary(Summary) is None:
        settle(folder, reporter.warn)


def _train(going: Sequence[Started], failures: Failures, reporter: Reporter) -> None:
    if not going:
        return
    agent = going[0][0].agent
    every = agent.config.model_dump(include={"checkpoint_every", "checkpoint_minutes", "log_every"})
    parts = [PhaseRun(phase, run.planned.folder, run.config.seed) for run, phase in going]
    for (run, phase), ended in zip(going, run_phases(parts, reporter, device=agent.device, **every), strict=True):
        with kept(failures, run.label):
            if isinstance(ended, Exception):
                raise ended
            run.seconds[phase.name] = ended.seconds
            run.notes.extend(ended.notes)


def _passes(runs: Sequence[OfflineRun]) -> list[list[OfflineRun]]:
    """Group runs for evaluation in one pass: equal numbers of episodes, and no more environments than fit into memory."""
    passes: list[list[OfflineRun]] = []
    room = 0
    for run in sorted(runs, key=lambda run: run.config.evaluation.episodes):
        room -= environments(run.agent)
        same_episodes = passes and passes[-1][0].config.evaluation.episodes == run.config.evaluation.episodes
        if same_episodes and room >= 0:
            passes[-1].append(run)
        else:
            passes.append([run])
            room = ENVIRONMENTS - environments(run.agent)
    return passes


def _evaluate(runs: Sequence[OfflineRun], failures: Failures, reporter: Reporter) -> list[tuple[OfflineRun, Rollouts]]:
    """Evaluate the runs in one pass, or one by one where that fails, so that only the failing run is lost."""
    try:
        return list(zip(runs, _rollouts(runs, reporter), strict=True))
    except Exception as error:
        if len(runs) == 1:
            failures[runs[0].label] = error
            return []
    return [found for run in runs for found in _evaluate([run], failures, reporter)]


def _rollouts(runs: Sequence[OfflineRun], reporter: Reporter) -> list[Rollouts]:
    started, episodes = time.perf_counter(), runs[0].config.evaluation.episodes
    agents, task = [run.agent for run in runs], runs[0].task
    title = "evaluation" if len(runs) == 1 else f"evaluation, {len(runs)} runs"
    with watched(reporter, title, agents, task) as watch:
        results = evaluate_together(
            agents,
            task,
            [agent.scales() for agent in agents],
            episodes=episodes,
            seeds=[run.config.seed for run in runs],
            watch=watch,
            paths=PATHS,
        )
    seconds = (time.perf_counter() - started) / len(runs)
    for run in runs:
        run.seconds["evaluation"] = seconds
    return results

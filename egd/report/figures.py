"""The figures of a report, one function each. Where the runs lack the data of a figure, its error says what to run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from egd.drawing import Figure, plain
from egd.errors import UserError, nearest
from egd.report.curves import curve
from egd.report.measures import curves_of
from egd.report.results import Report
from egd.report.runs import Run, grouped, shown
from egd.report.statistics import Array
from egd.runs.safe_names import figure_text
from egd.runs.summaries import read_metrics

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
COLOURS = ["#2e86ab", "#d1495b", "#3a7d44", "#e09f3e", "#6a4c93", "#7f7f7f", "#17a2b8", "#8c564b", "#c77dba", "#1b1b1e"]
AT_SCALE = re.compile(r"(.+)@([-+.\de]+)")
BINS = 150
"""The largest number of points of a curve of training metrics."""


def draw(name: str, report: Report) -> Figure:
    """Draw one of ``FIGURES``. Raises UserError for another name, or where the runs lack the data of the figure."""
    if name not in FIGURES:
        raise UserError(f"no figure is called '{name}'; {nearest(name, FIGURES)}", key="--figure")
    with plain(STYLE):
        figure: Figure = FIGURES[name](report)
    return figure


def _needs(name: str, what: str) -> UserError:
    return UserError(f"the figure '{name}' needs {what}", key="--figure")


def _look(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a line style for each name."""
    lines = ["-", "--", ":", "-."]
    once = enumerate(dict.fromkeys(names))
    return {name: {"color": COLOURS[i % len(COLOURS)], "ls": lines[i // len(COLOURS) % len(lines)]} for i, name in once}


def _panels(titles: Sequence[str], *, width: float = 3.2, height: float = 2.6) -> tuple[Figure, dict[str, Any]]:
    """Create an axis for every title, at most four in a row."""
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(5.0, width * columns), height * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    named = dict(zip(titles, axes, strict=False))
    for axis in axes[len(titles) :]:
        axis.remove()
    for title, axis in named.items():
        axis.set_title(figure_text(title))
    return figure, named


def _legend(figure: Figure, axes: Iterable[Any], columns: int = 4) -> None:
    """Add one legend below all axes, with each name once; the figure grows by its height."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    longest = max((len(label) for label in found), default=1)
    across = min(columns, max(1, int(figure.get_figwidth() * 14 / (longest + 5))))
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(found) // across))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=across)


def _band(axis: Any, curves: Sequence[Mapping[float, float]], label: str, look: Mapping[str, Any], **more: Any) -> None:
    """Plot the mean over seeds, with a band of one standard deviation where there are several; each curve is x -> y."""
    xs = sorted({x for curve in curves for x in curve})
    ys = [np.array([curve[x] for curve in curves if x in curve]) for x in xs]
    mean = np.array([y.mean() for y in ys])
    error = np.array([y.std(ddof=1) if len(y) > 1 else 0.0 for y in ys])
    axis.plot(xs, mean, label=figure_text(label), **look, **more)
    if len(curves) > 1:
        axis.fill_between(xs, mean - error, mean + error, color=look["color"], alpha=0.18, lw=0)


def _seeds(runs: Iterable[Run]) -> str:
    counts = sorted({len(group) for group in grouped(runs, lambda r: (r.summary.task, r.label)).values()})
    return f"n = {counts[0]} seed{'s' * (counts[-1] > 1)}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds"


def curves(report: Report) -> Figure:
    """Plot the score over training: evaluations in the last phase, mean and standard deviation over seeds."""
    runs = [run for run in report.runs if len(curve(run)) > 1]
    if not runs:
        raise _needs("curves", "evaluations in training: run with --set evaluation.every=10000, say")
    figure, axes = _panels(sorted({r.summary.task for r in runs}))
    looks = _look(r.label for r in runs)
    for (label, task), group in sorted(grouped(runs, lambda r: (r.label, r.summary.task)).items()):
        _band(axes[task], [curve(r) for r in group], label, looks[label], marker="o", ms=3)
    phases = " / ".join(sorted({r.summary.evaluations[-1].phase for r in runs}))
    for axis in axes.values():
        axis.set(xlabel=figure_text(f"training steps ({phases})"), ylabel="score")
    figure.suptitle(f"Learning curves, mean ± std, {_seeds(runs)}")
    _legend(figure, axes.values())
    return figure


def metrics(report: Report) -> Figure:
    """Plot training metrics by phase (rows) and task (columns), which show whether the networks have converged."""
    logs = {run.path: _metrics(run) for run in report.runs}
    names = sorted({name for log in logs.values() for name in log})
    if not names:
        raise _needs("metrics", "two lines of a phase in a run's metrics.jsonl: run longer, or with --set log_every=10, say")
    size = (max(5.0, 2.7 * len(report.tasks)), 1.6 * len(names) + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(report.tasks), squeeze=False)
    looks = _look(r.label for r in report.runs)
    groups = grouped(report.runs, lambda r: (r.summary.task, r.label))
    for (i, name), (j, task) in product(enumerate(names), enumerate(report.tasks)):
        for label in looks:
            found = [logs[r.path][name] for r in groups.get((task, label), ()) if name in logs[r.path]]
            if found:
                _band(axes[i, j], found, label, looks[label], lw=1)
        axes[i, j].set_title("\n".join(map(figure_text, (task, name) if i == 0 else (name,))), fontsize=8)
        axes[i, j].tick_params(labelsize=7)
        if not axes[i, j].lines:
            axes[i, j].set_axis_off()
    figure.suptitle(f"Training over the steps of each phase, mean ± std, {_seeds(report.runs)}")
    _legend(figure, axes.flat)
    return figure


def _metrics(run: Run) -> dict[str, dict[float, float]]:
    """Return "phase: metric" -> step -> value, with at most ``BINS`` steps; each value is the mean over neighbouring steps."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read_metrics(run.path / "metrics.jsonl"):
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        for name, value in numbers.items() if "step" in row else ():
            series[f"{row['phase']}: {name}"].append((row["step"], value))
    return {name: _thin(np.array(points)) for name, points in series.items() if len(points) > 1}


def _thin(points: Array) -> dict[float, float]:
    """Average points (N, 2) over neighbouring steps to step -> value."""
    parts = np.array_split(points, min(BINS, len(points)))
    return {float(part[-1, 0]): float(part[:, 1].mean()) for part in parts}


def radar(report: Report) -> Figure:
    """Draw a polygon for every method over the tasks that all methods have (AEPO, figure 1)."""
    tasks = report.shared
    if len(tasks) < 3:
        raise _needs("radar", f"three tasks or more that all methods have (there are {len(tasks)}): run further tasks")
    figure = Figure(figsize=(5 + 0.16 * max(map(len, tasks)), 5.2), layout="constrained")
    axis: Any = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    looks = _look(report.labels)
    for label, look in looks.items():
        scores = [float(np.mean([e.score for e in report.cells[t, label]])) for t in tasks]
        axis.plot([*angles, angles[0]], [*scores, scores[0]], label=figure_text(label), **look)
        axis.fill(angles, scores, color=look["color"], alpha=min(0.06, 0.3 / len(looks)))
    for tick, angle in zip(axis.set_xticks(angles, [*map(figure_text, tasks)]), angles, strict=True):
        side = np.cos(angle)
        tick.label1.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axis.tick_params(axis="x", pad=2)
    axis.set_rlabel_position(np.degrees(angles[1]) / 2)
    axis.set_rmin(min(0, axis.get_ylim()[0]))
    axis.spines["polar"].set_visible(False)
    axis.set_title(f"Score, mean over seeds, {_seeds(report.runs)}", pad=24)
    _legend(figure, [axis])
    return figure


def omega(report: Report) -> Figure:
    """Plot the score of every guided policy over the guidance scale, with the unguided policy as a line (AEPO, figures 2 to
    5).
    """
    scores = {run.path: _by_scale(run) for run in report.runs}
    runs = [run for run in report.runs if any(len(by) > 1 for by in scores[run.path].values())]
    if not runs:
        raise _needs("omega", "policies at several guidance scales: run with --set 'guidance.omegas=[0.3, 1, 3]', say")
    several = len({r.label for r in runs}) > 1
    figure, axes = _panels(sorted({r.summary.task for r in runs}))
    names = {(r.label, policy): f"{r.label}: {policy}" if several else policy for r in runs for policy in scores[r.path]}
    looks = _look(names.values())
    for (task, label), group in grouped(runs, lambda r: (r.summary.task, r.label)).items():
        for policy in dict.fromkeys(policy for r in group for policy in scores[r.path]):
            name = names[label, policy]
            found = [scores[r.path][policy] for r in group if policy in scores[r.path]]
            _band(axes[task], found, name, looks[name], marker="o", ms=3)
    for task, axis in axes.items():
        policies = [r.summary.policies for r in runs if r.summary.task == task]
        unguided = [found["behaviour"].mean for found in policies if "behaviour" in found]
        if unguided:
            axis.axhline(np.mean(unguided), color="0.6", lw=1, label="behaviour (omega = 0, temperature 1)", zorder=0)
        axis.set(xlabel="guidance scale omega", ylabel="score")
    figure.suptitle(f"Score over the guidance scale, mean ± std, {_seeds(runs)}")
    _legend(figure, axes.values(), columns=3)
    return figure


def _by_scale(run: Run) -> dict[str, dict[float, float]]:
    """Return policy -> omega -> score for the policies with a guidance scale in their name."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for name, stats in run.summary.policies.items():
        if match := AT_SCALE.fullmatch(name):
            found[match[1]][float(match[2])] = stats.mean
    return dict(found)


def sensitivity(report: Report) -> Figure:
    """Plot the headline policy's score over each numeric setting in which runs of a method differ, a line for every task (AEPO,
    figure 6).
    """
    varied = list(_varied(report))
    if not varied:
        raise _needs("sensitivity", "runs that differ in a number: run with --grid guidance.beta=1,2,3, say")
    figure, axes = _panels([f"{method}: {key}" for method, key, _ in varied], width=3.6)
    lines = {(r.summary.task, _besides(r, key)): _line_name(r, key) for _, key, runs in varied for r in runs}
    looks = _look(lines.values())
    for axis, (_, key, runs) in zip(axes.values(), varied, strict=True):
        for line, group in grouped(runs, lambda r, key=key: _line_name(r, key)).items():  # type: ignore[misc]
            scores = grouped(group, lambda r: r.summary.seed).values()
            found = [{r.cell[key]: r.summary.policies[r.summary.headline].mean for r in own} for own in scores]
            _band(axis, found, line, looks[line], marker="o", ms=3)
        values = sorted({r.cell[key] for r in runs})
        axis.set(xlabel=figure_text(key), ylabel="score")
        if values[0] > 0 and values[-1] / values[0] >= 20:
            axis.set_xscale("log")
        axis.set_xticks(values, [shown(v) for v in values])
        axis.minorticks_off()
    figure.suptitle(
        f"Sensitivity of the score, mean ± std, {_seeds({r.path: r for _, _, runs in varied for r in runs}.values())}"
    )
    _legend(figure, axes.values())
    return figure


def _varied(report: Report) -> Iterator[tuple[str, str, list[Run]]]:
    """Yield (method, key, runs) for every numeric key with several values among runs that are equal in all other settings."""
    for method, runs in grouped(report.runs, lambda r: r.summary.method).items():
        for key in runs[0].cell:
            numeric = [r for r in runs if isinstance(r.cell[key], int | float) and not isinstance(r.cell[key], bool)]
            lines = grouped(numeric, lambda r, key=key: _line_name(r, key)).values()  # type: ignore[misc]
            drawn = [run for line in lines if len({r.cell[key] for r in line}) > 1 for run in line]
            if drawn:
                yield method, key, drawn


def _besides(run: Run, key: str) -> str:
    return " ".join(f"{k}={shown(v)}" for k, v in run.cell.items() if k != key)


def _line_name(run: Run, key: str) -> str:
    return " ".join([run.summary.task, _besides(run, key)]).strip()


def cost(report: Report) -> Figure:
    """Plot the seconds of each phase, mean over runs, and the milliseconds of one action. A phase that was taken from the store
    counts with the seconds that its training took.
    """
    fair = report.shared or report.tasks  # else a method that ran on cheap tasks only would look cheap
    runs = [run for run in report.runs if run.summary.seconds and run.summary.task in fair]
    if not runs:
        raise _needs("cost", "seconds in summary.json, which every run writes at its end")
    groups = grouped(runs, lambda r: r.label)
    timed = {label: [r.summary.action_ms for r in group if r.summary.action_ms] for label, group in groups.items()}
    actions = {label: ms for label, ms in timed.items() if ms}
    figure = Figure(figsize=(5.5 + 2.8 * bool(actions), 0.34 * len(groups) + 1.5), layout="constrained")
    axes = figure.subplots(1, 2 if actions else 1, squeeze=False, sharey=True, width_ratios=[2, 1][: 1 + bool(actions)])[0]
    phases = list(dict.fromkeys(p for r in runs for p in r.summary.seconds if not p.endswith("env_step")))
    left = np.zeros(len(groups))
    for phase, look in _look(phases).items():
        seconds = np.array([_seconds(group, phase) for group in groups.values()])
        names = [*map(figure_text, groups)]
        axes[0].barh(names, seconds, left=left, color=look["color"], height=0.6, label=figure_text(phase))
        left += seconds
    axes[0].invert_yaxis()
    axes[0].set_xlabel("seconds a run, mean over runs")
    if actions:
        axes[1].barh([*map(figure_text, actions)], [np.mean(ms) for ms in actions.values()], height=0.6, color="0.5")
        axes[1].set_xlabel("milliseconds an action")
    figure.suptitle(f"Cost on {len(fair)} task{'s' * (len(fair) > 1)}, {_seeds(runs)} of each")
    _legend(figure, [axes[0]], columns=6)
    return figure


def _seconds(runs: Sequence[Run], phase: str) -> float:
    done = [r.summary.seconds[phase] for r in runs if phase in r.summary.seconds]
    return float(np.mean(done)) if done else 0.0


def aggregate(report: Report) -> Figure:
    """Plot mean, median and interquartile mean over tasks and seeds with 95 % intervals."""
    if not report.common:
        raise _needs("aggregate", "a task with normalised scores that all methods have: run what lacks, or choose by --method")
    figure = Figure(figsize=(9, 0.34 * len(report.labels) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(report.aggregates), sharey=True)
    looks = _look(report.labels)
    for axis, (statistic, estimates) in zip(axes, report.aggregates.items(), strict=True):
        for place, (label, found) in enumerate(estimates.items()):
            low, high = found.interval or (found.value, found.value)
            axis.barh(place, high - low, left=low, color=looks[label]["color"], alpha=0.35, height=0.5)
            axis.plot(found.value, place, "|", color=looks[label]["color"], ms=12, mew=2.5)
        axis.set(xlabel="score", title=statistic, axisbelow=True)
        axis.grid(axis="x", color="0.9")
        axis.use_sticky_edges = False  # else the left end of the leftmost interval lies on the frame
    axes[0].set_yticks(range(len(report.labels)), [figure_text(label) for label in report.labels])
    axes[0].set_ylim(len(report.labels) - 0.5, -0.5)
    figure.suptitle(
        f"Over {len(report.common)} task{'s' * (len(report.common) > 1)}, 95 % bootstrap intervals, {_seeds(report.runs)}"
    )
    return figure


def measures(report: Report) -> Figure:
    """Plot measurements on samples over beta, mean and standard deviation over seeds: a panel for every task and
    measurement.
    """
    panels = curves_of(report)
    if not panels:
        raise _needs("measures", "runs that measure samples, such as those of toy2d")
    figure, axes = _panels(list(panels))
    looks = _look(line for lines in panels.values() for line in lines)
    for panel, lines in panels.items():
        for line, values in lines.items():
            seeds = max(map(len, values.values()))
            _band(
                axes[panel],
                [{x: y[i] for x, y in values.items() if i < len(y)} for i in range(seeds)],
                line,
                looks[line],
                marker="o",
                ms=3,
            )
        axes[panel].set(xlabel="beta")
    figure.suptitle(f"Measured on samples, mean ± std, {_seeds(report.measured)}")
    _legend(figure, axes.values())
    return figure


FIGURES: dict[str, Callable[[Report], Figure]] = {
    "aggregate": aggregate,
    "radar": radar,
    "curves": curves,
    "omega": omega,
    "sensitivity": sensitivity,
    "cost": cost,
    "metrics": metrics,
    "measures": measures,
}

CAPTIONS = {
    "aggregate": "Mean, median and interquartile mean over tasks and seeds, with 95 % intervals.",
    "radar": "Scores of every method on the tasks that all methods have.",
    "curves": "Score over training: evaluations in the last phase, mean and standard deviation over seeds.",
    "omega": "Score of every guided policy over the guidance scale; the line is the unguided policy.",
    "sensitivity": "Score of the headline policy over each numeric setting in which runs differ, a line for every task.",
    "cost": "Seconds of each phase, mean over runs, and milliseconds of one action. A phase that was taken from the store "
    "counts with the seconds that its training took.",
    "metrics": "Training metrics by phase (rows) and task (columns), which show whether the networks have converged.",
    "measures": "Measurements on samples over beta, mean and standard deviation over seeds.",
}
"""Caption of every figure on the report's page."""

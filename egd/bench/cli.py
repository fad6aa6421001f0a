"""``egd bench``: measures, prints a table, and writes JSON and a figure."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from egd.cli.terminal import console, user_errors
from egd.errors import Notice, UserError, nearest
from egd.files import write_text

if TYPE_CHECKING:
    from egd.bench.energies import Curve, EnergyRow, EnergySettings

app = typer.Typer(help="Benchmarks: against exact answers, and of speed.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Compare estimators with exact answers, and measure speed."""


@app.command()
def energies(
    case: Annotated[list[str] | None, typer.Option("--case", "-c", help="Only this case. May be repeated.")] = None,
    beta: Annotated[str, typer.Option(help="Inverse temperatures.")] = "0.3,1,3,10",
    denoiser: Annotated[str, typer.Option(help="exact, trained or both.")] = "both",
    estimator: Annotated[list[str] | None, typer.Option("--estimator", "-e", help="Only this one. May be repeated.")] = None,
    mine: Annotated[
        str | None, typer.Option(help="A class of yours in the same table: path.py:MyEnergy, or package.module:MyEnergy.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
    curves: Annotated[Path | None, typer.Option(help="Write the errors at each t as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write all rows as Markdown tables.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the figure (PNG, PDF or SVG).")] = None,
    samples: Annotated[int, typer.Option(min=10, help="Guided samples of every estimator.")] = 1000,
    steps: Annotated[int, typer.Option(min=2, help="Sampler steps.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of cases, networks and samples.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Cases measured at a time, one process and one thread each.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A trial of two minutes whose numbers mean nothing.")] = False,
) -> None:
    """Compare every estimator of E_t with the exact one, on Gaussian mixtures."""
    with user_errors():
        chosen, specs = _cases(case, seed), _estimators(estimator, mine)
        betas, denoisers = _betas(beta), _denoisers(denoiser)
        _check_figure(figure)
    from egd.bench import energies as bench
    from egd.bench import report
    from egd.bench.estimators import small
    from egd.runs.progress import Reporter

    settings = bench.EnergySettings(seed=seed, samples=samples, steps=steps)
    if smoke:
        settings, specs, betas = bench.smoke(settings), small(specs), betas[:1]
    rows: list[EnergyRow] = []
    lines: list[Curve] = []
    with user_errors(), Reporter(console).notices():
        for results in _measured(chosen, betas, denoisers, specs, settings, workers):
            for group in report.grouped(row for row, _ in results):
                console.print(report.table(group))
            rows += [row for row, _ in results]
            lines += [line for _, line in results]
            if json is not None:  # after every case, so that an interruption loses no finished case
                report.write_json(json, rows)
            if curves is not None:
                report.write_json(curves, lines)
    with user_errors():
        if markdown is not None:
            write_text(markdown, report.markdown(rows))
        if figure is not None:
            report.figure(figure, lines, rows)


@app.command()
def ratios(
    case: Annotated[list[str] | None, typer.Option("--case", "-c", help="Only this problem. May be repeated.")] = None,
    estimator: Annotated[list[str] | None, typer.Option("--estimator", "-e", help="Only this one. May be repeated.")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Share of samples of the target in the replay.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of problems, networks and samples.")] = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="A trial of seconds whose numbers mean nothing.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the figure (PNG, PDF or SVG).")] = None,
) -> None:
    """Compare log-ratios learned from samples, as EDIS needs them, with the exact ones of Gaussian mixtures."""
    import torch

    from egd.bench import ratios as bench
    from egd.bench import ratios_report, report
    from egd.runs.progress import Reporter

    torch.set_num_threads(1)
    settings = bench.RatioSettings(seed=seed, share=share)
    if smoke:
        settings = bench.RatioSettings(seed=seed, share=share, samples=50, points=20, steps=5, training=5)
    problems = bench.problems(settings)
    with user_errors():
        names = _known(case, list(problems), "problem", "--case")
        labels = _known(estimator, list(bench.ESTIMATORS), "estimator", "--estimator")
        _check_figure(figure)
    rows: list[bench.RatioRow] = []
    with user_errors(), Reporter(console).notices():
        for name in names:
            own = list(bench.run(problems[name], labels, settings))
            console.print(ratios_report.table(own))
            rows += own
            if json is not None:  # after every problem, so that an interruption loses no finished problem
                report.write_json(json, rows)
    with user_errors():
        if markdown is not None:
            write_text(markdown, ratios_report.markdown(rows))
        if figure is not None:
            ratios_report.figure(figure, rows)


@app.command()
def speed(
    piece: Annotated[list[str] | None, typer.Option("--piece", "-p", help="Only this piece. May be repeated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    shapes: Annotated[str, typer.Option(help="Whose networks: recipe (ours) or qgpo (as published).")] = "recipe",
    state: Annotated[int, typer.Option(min=1, help="Entries of a state.")] = 17,
    action: Annotated[int, typer.Option(min=1, help="Entries of an action.")] = 6,
    width: Annotated[int | None, typer.Option(min=1, help="Width of the noise model; that of the recipes by default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Override a key of the recipe: a.b=c.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    scaling: Annotated[bool, typer.Option("--scaling", help="Sweeps over width, batch and dimension, too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A trial of seconds whose numbers mean nothing.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the rows as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
) -> None:
    """Time the pieces of training and acting, compared with plain code and with the device's limits."""
    import torch

    from egd.bench import report, speed_report
    from egd.bench import speed as bench
    from egd.runs.progress import Reporter
    from egd.runs.recipe import pick_device

    torch.set_num_threads(threads)
    with user_errors():
        where = torch.device(pick_device(device))
        setup = bench.Setup(where, shapes, state, action, width, settings or (), smoke)
        chosen = bench.choose(bench.find_pieces(setup), piece or (), scaling=scaling)
    timing = bench.SMOKE if smoke else bench.QUICK if quick else bench.FULL
    rows: list[bench.SpeedRow] = []
    reporter = Reporter(console)
    with user_errors(), reporter.notices(), reporter.bar("measuring", len(chosen)) as bar:
        for row in bench.measure(chosen, setup, timing):
            rows.append(report.rounded(row))  # rounded here, so that table and files agree to the last digit
            bar.advance(1, f"{row.piece} {row.batch}: {row.ms:.3g} ms")
            if json is not None:  # after every piece, so that an interruption loses no finished piece
                report.write_json(json, rows)
    console.print(speed_report.table(rows))
    if markdown is not None:
        with user_errors():
            write_text(markdown, speed_report.markdown(rows))


FIGURES = (".png", ".pdf", ".svg")
Results: TypeAlias = list[tuple["EnergyRow", "Curve"]]
Job: TypeAlias = tuple[str, list[float], list[str], dict[str, Any], "EnergySettings"]


def _measured(
    names: Sequence[str],
    betas: list[float],
    denoisers: list[str],
    specs: Mapping[str, Any],
    settings: EnergySettings,
    workers: int,
) -> Iterator[Results]:
    """Yield the results of each case, in order."""
    jobs = [(name, betas, denoisers, dict(specs), settings) for name in names]
    if workers == 1:
        yield from (_measure(job) for job in jobs)
        return
    from multiprocessing import get_context

    with get_context("spawn").Pool(workers) as pool:
        for results, notices in pool.imap(_measure_apart, jobs):
            for text in notices:
                warnings.warn(text, Notice, stacklevel=2)
            yield results


def _measure_apart(job: Job) -> tuple[Results, list[str]]:
    """Measure a case in a process of its own. Returns the results and the texts of the notices, for the main process to
    show.
    """
    from egd.runs.progress import noticing

    notices: list[str] = []
    with noticing(notices.append):
        return _measure(job), notices


def _measure(job: Job) -> Results:
    import torch

    from egd.bench.cases import cases
    from egd.bench.energies import run

    torch.set_num_threads(1)
    name, betas, denoisers, specs, settings = job
    return list(run(cases(settings.seed)[name], betas, denoisers, specs, settings))


def _known(names: list[str] | None, known: Sequence[str], kind: str, key: str) -> list[str]:
    """Return the known names that are chosen, in their own order; all where none is chosen. Raises UserError for an unknown
    name.
    """
    for name in names or ():
        if name not in known:
            raise UserError(f"no {kind} is called '{name}'; {nearest(name, known)}", key=key)
    return [name for name in known if name in (names or known)]


def _cases(names: list[str] | None, seed: int) -> list[str]:
    from egd.bench.cases import cases

    return _known(names, list(cases(seed)), "case", "--case")


def _estimators(names: list[str] | None, mine: str | None) -> dict[str, Any]:
    from egd.bench.estimators import all_estimators, check, label_of

    if mine is not None:
        check(mine)
    known = all_estimators(mine)
    for name in names or ():
        if name not in known:
            raise UserError(f"no estimator is called '{name}'; {nearest(name, known)}", key="--estimator")
    own = label_of(mine) if mine else None
    return {name: spec for name, spec in known.items() if name in (names or known) or name == own}


def _check_figure(path: Path | None) -> None:
    """Raise UserError, before anything is measured, for a figure in no known format."""
    if path is not None and path.suffix.lower() not in FIGURES:
        raise UserError(f"'{path}' is no figure that can be written; end it with {', '.join(FIGURES)}", key="--figure")


def _betas(text: str) -> list[float]:
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"'{text}' is not a list of numbers such as 0.3,1,3,10", key="--beta") from None
    if not all(0 < beta <= 10 for beta in betas):  # so that nan is refused
        raise UserError(f"'{text}': beta must be above 0, and at most 10, up to which every target is finite", key="--beta")
    return betas


def _denoisers(text: str) -> list[str]:
    options = {"exact": ["exact"], "trained": ["trained"], "both": ["exact", "trained"]}
    if text not in options:
        raise UserError(f"'{text}' is not one of {', '.join(options)}", key="--denoiser")
    return options[text]

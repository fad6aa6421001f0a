"""``egd bench energies``: its truths against other ways to have them, its rows, its command line."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from egd.bench import cli
from egd.bench.cases import KINDS, Case, cases
from egd.bench.cli import app
from egd.bench.energies import Counted, EnergyRow, EnergySettings, _problem, run, smoke
from egd.bench.estimators import all_estimators, label_of, reads_denoiser
from egd.bench.report import table
from egd.mixtures import Quadratic
from egd.runs.progress import noticing
from egd.samplers.watching import SamplingWarning
from egd.schedules import VPLinear
from egd.tensors import value_and_grad

RUNNER = CliRunner()
KEYS = {
    *("case", "beta", "denoiser", "estimator", "grad_rel_error", "grad_cosine", "target_error"),
    *("sliced_w2", "noise_floor", "mean_energy", "exact_mean_energy", "nfe", "seconds"),
}


def bench(*arguments: str) -> Any:
    return RUNNER.invoke(app, ["energies", "--smoke", *arguments])


def test_the_cases_are_what_they_are_said_to_be() -> None:
    for case in cases(3).values():
        if case.kind == "non-quadratic":
            assert not isinstance(case.energy, Quadratic)
            continue
        assert isinstance(case.energy, Quadratic)
        values = torch.linalg.eigvalsh(case.energy.A)
        kind = "linear" if values.abs().max() == 0 else "convex" if values.min() > 0 else "indefinite"
        assert kind == case.kind
        case.mixture.tilted(case.energy, 10.0)  # finite up to the largest beta
    assert {case.kind for case in cases().values()} == set(KINDS)
    assert {case.dim for case in cases().values()} == {2, 4, 8, 16, 32}


@pytest.mark.parametrize("name", ["grid-2d-waves", "wide-2d-shell"])
@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_quadrature_agrees_with_samples_of_the_posterior(name: str, beta: float, generator: torch.Generator) -> None:
    case, schedule = cases()[name], VPLinear()
    t = torch.tensor([0.1, 0.4, 0.8])
    x = case.mixture.noised(schedule, t, generator)
    exact = case.exact(schedule, beta, x, t)
    log_w, means, covs = case.mixture.posterior(schedule, x, t)
    for i in range(len(t)):
        k = torch.multinomial(log_w[i].exp(), 200_000, replacement=True, generator=generator)
        root = torch.linalg.cholesky(covs[i])
        z = torch.randn(200_000, 2, generator=generator)
        x0 = means[i][k] + torch.einsum("nij,nj->ni", root[k], z)
        weights = torch.exp(-beta * case.energy(x0, None))
        error = float(weights.std() / weights.mean() / 200_000**0.5)
        assert float(exact[i]) == pytest.approx(float(-weights.mean().log()), abs=5 * error + 1e-6)


@pytest.mark.parametrize("name", ["grid-2d-waves", "wide-2d-shell", "random-2d-convex"])
def test_targets_are_the_tilted_distribution(name: str, generator: torch.Generator) -> None:
    case, beta = cases()[name], 2.0
    proposals = case.mixture.sample(200_000, generator)
    weights = torch.softmax(-beta * case.energy(proposals, None), 0)
    drawn = case.target(beta, 40_000, generator)
    for f in (case.energy, lambda x, c: x[:, 0], lambda x, c: x[:, 1].square()):
        values = f(drawn, None)
        error = float(values.std() / 200) + float((weights * (f(proposals, None) - values.mean())).square().sum().sqrt())
        assert float(values.mean()) == pytest.approx(float(weights @ f(proposals, None)), abs=5 * error)


def rows_of(case: Case, estimators: dict[str, Any], beta: float = 1.0, **settings: Any) -> dict[str, EnergyRow]:
    chosen = EnergySettings(samples=500, steps=30, points=64, times=(0.1, 0.5, 0.9), calibration=512, **settings)
    return {row.estimator: row for row, _ in run(case, [beta], ["exact"], estimators, chosen)}


def test_the_exact_energy_has_no_error_and_leads_to_the_target() -> None:
    chosen: dict[str, Any] = {"first_order, posterior1": all_estimators()["first_order, posterior1"]}
    chosen["mixture_fit"] = {
        "name": "mixture_fit",
        "samples": 8192,
        "components": (8,),
        "points": 16,
    }  # the ring has eight modes
    rows = rows_of(cases()["ring-2d-convex"], chosen, beta=3.0)
    exact, first, fitted = rows["exact"], rows["first_order, posterior1"], rows["mixture_fit"]
    assert exact.grad_rel_error < 1e-6
    assert exact.grad_cosine == pytest.approx(1)
    assert exact.sliced_w2 < 2 * exact.noise_floor
    assert exact.nfe == 30
    assert fitted.grad_rel_error < 0.1 and fitted.sliced_w2 < 2 * fitted.noise_floor
    assert first.grad_rel_error > 1 and first.sliced_w2 > 5 * first.noise_floor  # design.md 1.3: the wrong way
    assert first.mean_energy > 2 * first.exact_mean_energy


def test_a_table_of_80_columns_cuts_no_number() -> None:
    row = EnergyRow(
        "ring-2d-linear",
        10.0,
        "trained",
        "first_order, posterior1",
        12345.0,
        0.5,
        12345.0,
        12345.0,
        0.1,
        None,
        0.1,
        120.0,
        1000.0,
    )
    console = Console(width=80, file=StringIO())
    with console.capture() as printed:
        console.print(table([row]))
    text = printed.get()
    assert "…" not in text and text.count("1.2e+04") == 3 and "diverged" in text and "1000.0" in text


def test_a_jacobian_is_paid_for() -> None:
    known = all_estimators()
    rows = rows_of(cases()["random-4d-convex"], {k: known[k] for k in ("dps", "second_order, tweedie")})
    assert rows["dps"].nfe == 2 * 30
    assert rows["second_order, tweedie"].nfe == (1 + 1 + 4) * 30


@pytest.mark.pictures
def test_rows_curves_and_figure_of_both_denoisers(tmp_path: Path) -> None:
    out, curves, figure = tmp_path / "rows.json", tmp_path / "curves.json", tmp_path / "plot.png"
    result = bench(
        *("-c", "ring-2d-linear", "--beta", "1", "-e", "dps", "-e", "MSE", "-e", "CEP", "-e", "AEPO"),
        *("--json", str(out), "--curves", str(curves), "--figure", str(figure)),
        *("--markdown", str(tmp_path / "rows.md")),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())
    assert all(set(row) == KEYS for row in rows)
    assert [(r["denoiser"], r["estimator"]) for r in rows] == [
        (denoiser, label) for denoiser in ("exact", "trained") for label in ("exact", "dps", "AEPO", "MSE", "CEP")
    ]
    lines = json.loads(curves.read_text())
    assert [len(line["grad_rel_error"]) for line in lines] == [3] * len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert row["grad_rel_error"] == pytest.approx(sum(line["grad_rel_error"]) / 3, rel=1e-4)
    assert figure.stat().st_size > 10_000
    text = (tmp_path / "rows.md").read_text()
    assert text.count("| `CEP` |") == 4  # a summary and a full table for each denoiser
    exact = next(line for line in text.splitlines() if line.startswith("| `exact` |"))
    assert "1/1" in exact  # within 5 % on the one problem there is


def test_a_class_of_ones_own_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom egd.types import Denoiser, Energy\n\n\n"
        "@dataclass(frozen=True)\nclass Mine:\n    energy: Energy\n    denoiser: Denoiser\n    beta: float = 1.0\n\n"
        "    def __call__(self, x, t, c=None):\n        return self.beta * self.energy(self.denoiser(x, t, c), c)\n"
    )
    result = bench(
        "-c", "ring-2d-convex", "--beta", "1", "--denoiser", "exact", "-e", "dps", "--mine", "mine.py:Mine", "--json", "r.json"
    )
    assert result.exit_code == 0, result.output
    rows = {row["estimator"]: row for row in json.loads(Path("r.json").read_text())}
    assert rows["Mine"]["grad_rel_error"] == pytest.approx(rows["dps"]["grad_rel_error"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "ring"], ["--case", "'ring'", "ring-2d"]),
        (["-e", "cep"], ["--estimator", "'cep'", "CEP"]),
        (["--beta", "a"], ["--beta", "'a'"]),
        (["--beta", "30"], ["--beta", "'30'", "10"]),
        (["--beta", "1,nan"], ["--beta", "nan", "10"]),
        (["--figure", "plot.nonsense"], ["--figure", "plot.nonsense", ".png"]),
        (["--denoiser", "none"], ["--denoiser", "'none'", "both"]),
        (["--mine", "nowhere.py:Mine"], ["--mine", "nowhere.py"]),
    ],
)
def test_bad_input_is_named_with_its_remedy(arguments: list[str], words: list[str]) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert all(word in result.output for word in words), result.output


def test_a_class_that_breaks_its_contract_later_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "class Late:\n    def __call__(self, x, t, c=None):\n        energies = x.square().sum(1)\n"
        "        return energies if len(x) < 20 else energies[:, None]\n"
    )
    result = bench(
        "-c", "ring-2d-convex", "--beta", "1", "--denoiser", "exact", "--mine", f"{tmp_path}/late.py:Late", "-e", "dps"
    )
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert "Late (late.py, line 1) gave the shape (200, 1)" in " ".join(result.output.split())


def test_rows_of_the_library_keep_their_names() -> None:
    for name in ("exact", "Exact", "dps", "DPS", "CEP"):
        assert label_of(f"mine.py:{name}") == f"mine.py:{name}"
    assert label_of("mine.py:Mine") == "Mine"


def test_notices_of_a_worker_are_shown_by_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's own terminal would show them as Python does, with file and line, once for each worker."""

    def measured(job: Any) -> list[Any]:
        for _ in range(2):
            warnings.warn("dps: samples have left the data's scale", SamplingWarning, stacklevel=1)
        return [job]

    monkeypatch.setattr(cli, "_measure", measured)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli._measure_apart(3) == ([3], ["dps: samples have left the data's scale"])  # type: ignore[arg-type]

    class Pool:
        def __init__(self, workers: int) -> None:
            self.imap = map

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(multiprocessing, "get_context", lambda method: SimpleNamespace(Pool=Pool))
    shown: list[str] = []
    with noticing(shown.append):
        assert len(list(cli._measured(["a", "b"], [1.0], ["exact"], {}, EnergySettings(), 2))) == 2
    assert shown == ["dps: samples have left the data's scale"]


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one(tmp_path: Path) -> None:
    read = lambda path: [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(path.read_text())]  # noqa: E731
    for workers in ("1", "2"):
        result = bench(
            *("-c", "ring-2d-linear", "-c", "wide-2d-convex", "--beta", "1", "--denoiser", "exact", "-e", "dps"),
            *("--workers", workers, "--json", str(tmp_path / f"{workers}.json")),
        )
        assert result.exit_code == 0, result.output
    one, two = read(tmp_path / "1.json"), read(tmp_path / "2.json")
    assert [
        {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5, abs=1e-9) for k, v in row.items()} for row in one
    ] == two  # workers work in float32


def test_smoke_changes_the_amount_of_work_alone() -> None:
    assert smoke(EnergySettings(seed=3)).seed == 3


def test_the_gradient_of_the_quadrature_is_smooth(generator: torch.Generator) -> None:
    case, schedule = cases()["wide-2d-shell"], VPLinear()
    t = torch.full((4,), 0.3)
    x = case.mixture.noised(schedule, t, generator)
    _, grad = value_and_grad(lambda x: case.exact(schedule, 3.0, x, t), x)
    step = 1e-5 * torch.eye(2)[0]
    difference = (case.exact(schedule, 3.0, x + step, t) - case.exact(schedule, 3.0, x - step, t)) / 2e-5
    torch.testing.assert_close(grad[:, 0], difference, rtol=1e-5, atol=1e-6)


def test_the_error_at_the_target_is_the_sigma_weighted_one() -> None:
    """Of (1 + e) times the exact energy it is e, of no guidance 1, whatever the problem; and it ranks as the distance does."""
    case, schedule, beta = cases()["ring-2d-convex"], VPLinear(), 3.0
    exact = lambda x, t, c=None: case.exact(schedule, beta, x, t)  # noqa: E731
    problem = _problem(case, beta, "exact", Counted(lambda x, t, c: x), schedule, smoke(EnergySettings()), {})
    assert problem._target_error(exact) < 1e-12
    assert problem._target_error(lambda x, t, c: 1.3 * exact(x, t)) == pytest.approx(0.3)
    assert problem._target_error(lambda x, t, c: 0 * x.sum(1)) == pytest.approx(1)
    tilt = torch.tensor([0.5, 0.0])
    shifted = problem._target_error(lambda x, t, c: exact(x, t) + x @ tilt.to(x))
    weights = torch.stack([schedule.sigma(t[:1]) ** 2 for _, t, _ in problem.target_states])
    grads = torch.stack([truth.square().sum(1).mean() for _, _, truth in problem.target_states])
    assert shifted == pytest.approx(float((0.25 * weights.mean() / (weights[:, 0] * grads).mean()) ** 0.5))
    x, *_ = problem.target_states[0]  # low noise: near samples of the target, not of the data
    assert case.energy(x, None).mean() < 0.5 * case.energy(problem.states[0][0], None).mean()
    known = all_estimators()
    chosen = {label: known[label] for label in ("dps", "first_order, posterior1", "second_order, tweedie")}
    rows = sorted(rows_of(case, chosen, beta=beta).values(), key=lambda row: row.target_error)
    assert [row.sliced_w2 for row in rows] == sorted(row.sliced_w2 for row in rows)


@pytest.mark.slow
def test_a_network_that_reads_the_denoiser_is_trained_for_each_and_a_built_ins_name_replaces_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from egd.types import Denoiser, Energy\n\n\nclass MSE:\n    def __init__(self, energy: Energy, denoiser: Denoiser):\n"
        "        self.energy, self.denoiser = energy, denoiser\n\n"
        "    def loss(self, network, x0, x, t, c, generator):\n"
        "        target = self.energy(self.denoiser(x, t, c).detach(), c)\n"
        "        return (network(x, t, c) - target).square().mean(), {}\n"
    )
    result = bench(*("-c", "ring-2d-convex", "--beta", "1", "-e", "MSE", "--mine", "mine.py:MSE", "--json", "r.json"))
    assert result.exit_code == 0, result.output
    rows = json.loads(Path("r.json").read_text())
    assert [row["estimator"] for row in rows] == 2 * ["exact", "MSE", "mine.py:MSE"]
    error = {(row["denoiser"], row["estimator"]): row["grad_rel_error"] for row in rows}
    assert error["exact", "MSE"] == error["trained", "MSE"]  # it asks nothing of the denoiser: one network for both
    assert error["exact", "mine.py:MSE"] != error["trained", "mine.py:MSE"]
    assert reads_denoiser({"name": "analytic", "target": {"name": "first_order", "posterior": "residual"}})
    assert not reads_denoiser("cep")

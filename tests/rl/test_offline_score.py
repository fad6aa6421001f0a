"""Choosing without a simulator: estimates against closed forms, and the command on tiny runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.agreement import agreement
from egd.cli import main as cli
from egd.errors import UserError
from rl.config import CriticConfig
from rl.data.transitions import Batch, OfflineData
from rl.evaluation.fqe import fitted_q
from rl.evaluation.offline_score import (
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

# -- the divergence -----------------------------------------------------------------------------------------------


def normal(states: int, k: int, dim: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    draws = std * torch.randn(states, k, dim, generator=generator)
    draws[..., 0] += mean
    return draws


@pytest.mark.parametrize("dim", [1, 3, 24])
@pytest.mark.parametrize("k", [4, 32])
def test_the_behaviour_policy_does_not_diverge_from_itself(dim: int, k: int, generator: torch.Generator) -> None:
    a, b = normal(2000, k, dim, generator), normal(2000, k - 1, dim, generator)
    kl = neighbour_kl(a, b, spread(b), generator)
    assert abs(kl.mean()) < 3.5 * kl.std() / 2000**0.5


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (0.0, 0.5), (1.0, 0.7)])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_divergence_of_many_samples_is_that_of_gaussians(
    dim: int, mean: float, std: float, generator: torch.Generator
) -> None:
    want = mean**2 / 2 + dim * (std**2 - 1 - 2 * math.log(std)) / 2
    a, b = normal(100, 512, dim, generator, mean, std), normal(100, 511, dim, generator)
    assert float(neighbour_kl(a, b, spread(b), generator).mean()) == pytest.approx(want, rel=0.1)


def test_units_of_the_actions_do_not_matter(generator: torch.Generator) -> None:
    a, b = normal(50, 16, 3, generator, 1.0), normal(50, 15, 3, generator)
    scale = torch.tensor([1e-2, 1.0, 100.0])
    kl = [neighbour_kl(s * a, s * b, spread(s * b), torch.Generator().manual_seed(1)) for s in (torch.ones(3), scale)]
    torch.testing.assert_close(*kl, rtol=1e-3, atol=1e-3)


def test_a_policy_without_spread_diverges_finitely_and_more_than_a_wide_one(generator: torch.Generator) -> None:
    b = normal(50, 15, 2, generator)
    point, wide = torch.zeros(50, 16, 2), normal(50, 16, 2, generator, std=0.5)
    of_point, of_wide = (float(neighbour_kl(a, b, spread(b), generator).mean()) for a in (point, wide))
    assert math.isfinite(of_point) and of_point > of_wide > 0
    neighbour_kl(point, torch.zeros(50, 15, 2), spread(torch.zeros(50, 15, 2)), generator).isfinite().all()
    with pytest.raises(ValueError, match="at least 2"):
        neighbour_kl(b[:, :1], b, spread(b), generator)


# -- the score ----------------------------------------------------------------------------------------------------

BETA, CURVATURE, GOAL = 2.0, 1.0, torch.tensor([1.5, -0.5])


def tilted(omega: float) -> tuple[float, Tensor]:
    """Variance and mean of N(0, I) exp(omega beta Q), Q = -CURVATURE |a - GOAL|^2 / 2."""
    precision = 1 + omega * BETA * CURVATURE
    return 1 / precision, omega * BETA * CURVATURE * GOAL / precision


def quadratic(a: Tensor) -> Tensor:
    return -CURVATURE * (a - GOAL).square().sum(-1) / 2


def objective(omega: float) -> float:
    """E_pi Q - KL / beta - E_mu Q."""
    var, mean = tilted(omega)
    q = -CURVATURE * ((mean - GOAL).square().sum() + 2 * var) / 2
    kl = (mean.square().sum() + 2 * (var - 1 - math.log(var))) / 2
    return float(q - kl / BETA + CURVATURE * (GOAL.square().sum() + 2) / 2)


def test_on_a_bandit_policies_rank_as_by_the_exact_objective(generator: torch.Generator) -> None:
    omegas, n, k = (0.0, 0.1, 0.3, 1.0, 4.0, 10.0), 400, 64
    reference = torch.randn(n, k - 1, 2, generator=generator)
    base = quadratic(torch.randn(n, k, 2, generator=generator)).mean(1)
    scores = {}
    for omega in omegas:
        var, mean = tilted(omega)
        actions = mean + var**0.5 * torch.randn(n, k, 2, generator=generator)
        kl = neighbour_kl(actions, reference, spread(reference), generator)
        scores[f"guided@{omega:g}"] = regularised(quadratic(actions).mean(1) - base, kl, 1 / BETA)
    exact = {f"guided@{omega:g}": objective(omega) for omega in omegas}
    assert sorted(scores, key=lambda name: scores[name].score) == sorted(exact, key=lambda name: exact[name])
    assert choose(scores) == "guided@1"
    for name, score in scores.items():
        assert score.score == pytest.approx(exact[name], abs=0.2), name
    assert abs(scores["guided@0"].score) < 4 * scores["guided@0"].se


def test_the_cautious_penalty_is_what_a_linear_error_makes_of_a_shift() -> None:
    shift, grad = 1.7, 0.6  # e(a) = gradient a, of spread 0.6 under N(0, 1), is exploited by N(shift, 1) to the full
    kl = torch.full((10,), shift**2 / 2)
    score = cautious(torch.full((10,), grad * shift), kl, grad)
    assert score == Score(
        pytest.approx(grad * shift), pytest.approx(shift**2 / 2), pytest.approx(0.0, abs=1e-6), pytest.approx(0.0, abs=1e-6)
    )
    assert cautious(torch.ones(4), torch.tensor([-0.2, 0.1, -0.1, 0.0]), 5.0).score == 1.0  # noise around no divergence


def test_disagreement_is_the_spread_of_independent_errors(generator: torch.Generator) -> None:
    errors = 0.3 * torch.randn(2, 400, 64, generator=generator)
    offsets, truth = torch.randn(2, 400, 1, generator=generator), 5 * torch.randn(400, 64, generator=generator)
    assert disagreement(truth + offsets + errors) == pytest.approx(0.3, rel=0.02)
    with pytest.raises(UserError, match="two members"):
        disagreement(truth[None])


def test_regret_is_counted_among_what_was_rolled_out() -> None:
    found = regret({"a": 1.0, "b": 5.0, "c": None}, "c", "a")
    assert found is not None
    assert (found.best, found.best_score, found.of_choice, found.of_default) == ("b", 5.0, None, 4.0)
    assert regret({"a": None}, "a", "a") is None


def test_whole_stretches_are_held_out() -> None:
    held = held_out(5000)
    assert held.sum() == 500
    assert (held[1:] != held[:-1]).sum() <= 20
    assert held_out(30).any() and not held_out(30).all()


# -- fitted Q evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [0.0, 1.0])
def test_fitted_q_is_the_value_of_the_given_policy(terminal: float, generator: torch.Generator) -> None:
    """One state, reward a: Q(a) = a + gamma c / (1 - gamma) for the policy that always does c; a where episodes end."""
    rows, gamma, c = 512, 0.8, 0.5
    action = 2 * torch.rand(rows, 1, generator=generator) - 1
    state = torch.zeros(rows, 1)
    data = OfflineData(
        Batch(state, action, action[:, 0], state, torch.full((rows,), terminal)),
        state_mean=torch.zeros(1),
        state_std=torch.ones(1),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
        dataset_return=0.0,
        episodes=1,
    )
    settings = CriticConfig(gamma=gamma, width=32, layers=2, lr=3e-3, batch=64, layer_norm=False)
    policy = lambda states: torch.full((len(states), 1), c)  # noqa: E731
    critic = fitted_q(data, torch.arange(rows), policy, settings, steps=600, generator=generator)
    asked = torch.tensor([[-0.8], [0.0], [0.8]])
    want = asked[:, 0] + (1 - terminal) * gamma * c / (1 - gamma)
    torch.testing.assert_close(critic.q(torch.zeros(3, 1), asked).detach(), want, atol=0.1, rtol=0)


# -- the command ------------------------------------------------------------------------------------------------------

METHODS = """
methods:
  aepo: {}
  other: {guidance: {beta: 1}, variants: null}
  cloned: {agent: bc, actor: {steps: 20}}
  shifted: {agent: bc, actor: {steps: 20}, data: {reward_shift: 1}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, store: Path, tiny: str) -> Iterator[Path]:
    """A folder of four methods' runs, one seed each."""
    from egd.cli import main as cli

    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(tiny.replace("episodes: 2, envs: 2", "episodes: 1") + METHODS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        patch.setenv("EGD_STORE", str(folder / "store"))
        ran = CliRunner().invoke(cli.app, ["run", str(folder / "tiny.yaml"), "--out", str(folder / "out"), "--device", "cpu"])
        assert ran.exit_code == 0, ran.output
        yield folder / "out/egd-maze2d-umaze-v0"


FEW = ("--states", 24, "--actions", 5)


@pytest.mark.slow
def test_select_judges_every_policy_of_a_run(egd: Any, runs: Path, tmp_path: Path) -> None:
    result = egd("select", runs / "aepo", *FEW, "--json", tmp_path / "new/select.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "new/select.json").read_text())
    summary = json.loads((runs / "aepo/seed-0/summary.json").read_text())
    rows = {row["policy"]: row for row in found["rows"]}
    assert list(rows) == list(summary["policies"]) == ["behaviour", "guided@1", "literal@1", "literal@0.5"]
    for name, row in rows.items():
        assert row["simulated"] == summary["policies"][name]["mean"]
        assert row["score"] == pytest.approx(row["value"] - max(row["kl"], 0) / 3, abs=1e-5)  # the recipe's beta
        assert row["chosen"] == (row["score"] == max(r["score"] for r in rows.values()))
    assert rows["behaviour"]["value"] == rows["behaviour"]["kl"] == 0
    best = max(row["simulated"] for row in rows.values())
    (chosen,) = [row for row in rows.values() if row["chosen"]]
    assert found["regret"]["of_choice"] == best - chosen["simulated"]
    assert found["regret"]["of_default"] == best - rows["guided@1"]["simulated"]
    assert found["chosen"] == f"aepo {chosen['policy']}" and found["default"] == "aepo guided@1"
    assert f"Chosen: {found['chosen']}" in result.output and "By the simulator" in result.output
    again = egd("select", runs / "aepo", *FEW, "--json", tmp_path / "again.json")
    assert again.exit_code == 0 and json.loads((tmp_path / "again.json").read_text()) == found


def test_select_at_other_scales_prices_and_judges(egd: Any, runs: Path, tmp_path: Path) -> None:
    def judged(*arguments: Any) -> dict[str, Any]:
        result = egd("select", runs / "aepo", *FEW, "--json", tmp_path / "select.json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / "select.json").read_text())

    scales = judged("--omega", "0,2", "--beta", 10)
    assert [row["policy"] for row in scales["rows"]] == ["behaviour", "guided@2", "literal@2"]
    assert [row["simulated"] is None for row in scales["rows"]] == [False, True, True]
    assert scales["regret"]["default_score"] is not None
    assert scales["price"] == pytest.approx(0.1)
    error = judged("--penalty", "error")
    for row in error["rows"]:
        assert row["score"] == pytest.approx(row["value"] - error["price"] * math.sqrt(2 * max(row["kl"], 0)), abs=1e-5)
    fitted, plain = judged("--fqe", 20), judged()
    assert [row["kl"] for row in fitted["rows"]] == [row["kl"] for row in plain["rows"]]
    assert [row["value"] for row in fitted["rows"]] != [row["value"] for row in plain["rows"]]
    assert fitted["rows"][0]["value"] == 0


def test_select_goes_on_without_a_damaged_run(egd: Any, runs: Path, tmp_path: Path) -> None:
    alone = egd("select", runs / "aepo", *FEW, "--json", tmp_path / "alone.json")
    assert alone.exit_code == 0
    for name in ("other", "cloned"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    (tmp_path / "runs/cloned/seed-0/checkpoints/policy.safetensors").write_bytes(b"short")
    (tmp_path / "runs/other/seed-0/config.yaml").write_text("experiment: offline_rl\ntask: egd/maze2d/umaze-v0\nseed: 0\n{")
    result = egd("select", runs / "aepo", tmp_path / "runs", *FEW, "--json", tmp_path / "select.json")
    assert result.exit_code == 2, result.output
    found = json.loads((tmp_path / "select.json").read_text())
    assert {Path(one["path"]).parent.name for one in found["damaged"]} == {"other", "cloned"}
    assert found["rows"] == json.loads((tmp_path / "alone.json").read_text())["rows"]
    assert "2 damaged runs are left out" in " ".join(result.output.split())


def test_what_is_no_number_is_never_chosen(egd: Any, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.evaluation.offline_selection import Candidate

    acting = Candidate.actions
    lost = {"behaviour", "guided"}  # the first one that is judged, and the headline

    def actions(self: Candidate, states: torch.Tensor, k: int, seed: int) -> torch.Tensor:
        found = acting(self, states, k, seed)
        return torch.full_like(found, torch.nan) if self.name in lost else found

    monkeypatch.setattr(Candidate, "actions", actions)
    refused = egd("select", runs / "aepo", *FEW)
    assert refused.exit_code == 2 and "no policy has a score that is a number" in refused.output, refused.output
    lost.remove("behaviour")
    result = egd("select", runs / "aepo", *FEW, "--json", tmp_path / "select.json")
    assert result.exit_code == 0, result.output
    assert "aepo guided@1 is left out of the choice" in " ".join(result.output.split())
    found = json.loads((tmp_path / "select.json").read_text(), parse_constant=pytest.fail)
    assert not found["chosen"].startswith("aepo guided")
    assert {row["policy"] for row in found["rows"] if row["score"] is None} >= {"guided@1"}
    score = {"a": Score(math.nan, 0.0, math.nan, 0.1), "b": Score(-1.0, 0.0, -1.0, 0.1), "c": Score(-2.0, 0.0, -2.0, 0.1)}
    assert choose(score) == "b"


def test_select_among_several_runs(egd: Any, runs: Path, tmp_path: Path) -> None:
    folders = [runs / name for name in ("aepo", "other", "cloned")]
    result = egd("select", *folders, *FEW, "--json", tmp_path / "select.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "select.json").read_text())
    assert {row["run"] for row in found["rows"]} == {"aepo", "other", "cloned"}
    assert "differ in beta" in result.output and found["price"] == pytest.approx(1 / 3)
    clone = next(row for row in found["rows"] if row["run"] == "cloned")
    assert clone["policy"] == "policy" and clone["kl"] > 1  # it is deterministic
    assert len(found["judges"]) == 1  # the two share a critic, and the clone has none
    own = egd("select", runs / "aepo", *FEW, "--penalty", "error", "--json", tmp_path / "own.json")
    both = egd("select", runs / "aepo", runs / "other", *FEW, "--penalty", "error", "--json", tmp_path / "both.json")
    assert own.exit_code == both.exit_code == 0
    errors = [json.loads((tmp_path / f"{name}.json").read_text())["price"] for name in ("own", "both")]
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("folders", "arguments", "words"),
    [
        (["none"], [], ["no such folder", "none"]),
        (["aepo"], ["--penalty", "k1"], ["--penalty", "k1", "kl"]),
        (["aepo"], ["--penalty", "error", "--fqe", 5], ["--penalty", "--fqe"]),
        (["aepo"], ["--beta", 0], ["--beta", "positive"]),
        (["aepo"], ["--omega", "1;2"], ["--omega", "1;2"]),
        (["cloned"], [], ["behaviour policy", "aepo"]),
        (["aepo", "shifted"], [], ["data.reward_shift", "same data"]),
    ],
)
def test_what_cannot_be_judged_is_said(
    egd: Any, runs: Path, folders: list[str], arguments: list[Any], words: list[str]
) -> None:
    result = egd("select", *(runs / name for name in folders), *FEW, *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


def test_a_policy_without_a_scale_is_not_asked_for_one(egd: Any, runs: Path) -> None:
    result = egd("eval", runs / "cloned/seed-0", "--omega", "1,2")
    assert result.exit_code == 2 and "--omega" in result.output and "no guidance scale" in result.output


def test_a_run_that_is_not_finished_is_not_judged(egd: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((runs / "aepo/seed-0/config.yaml").read_text())
    result = egd("select", tmp_path)
    assert result.exit_code == 2 and "not finished" in result.output
    assert "not used" in egd("select", tmp_path, runs / "aepo", *FEW).output
    without = egd("select", tmp_path, runs / "cloned", *FEW)  # perhaps that one would have had a behaviour policy
    assert without.exit_code == 2 and "behaviour policy" in without.output and "not finished" in without.output


def benched(main: Any, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> str:
    monkeypatch.setattr(cli.console, "width", 200)
    command = typer.Typer()
    command.command()(main)
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_costs_of_methods_stand_side_by_side(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.costs import main

    output = benched(main, monkeypatch, runs / "aepo", runs / "cloned", "--quick")
    assert all(word in output for word in ("aepo", "cloned", "training s", "ms, 1", "traced ms, 1", "denoiser"))


def test_agreement_of_critics_against_known_orders(generator: torch.Generator) -> None:
    q, noise = torch.randn(2, 4000, 8, generator=generator)
    same, opposed, strange = agreement(q, 3 * q + 1), agreement(q, -q), agreement(q, noise)
    assert same.rank == pytest.approx(1) and same.confirmed == pytest.approx(same.claimed)
    assert opposed.rank == pytest.approx(-1) and opposed.confirmed == pytest.approx(-opposed.claimed)
    assert abs(strange.rank) < 0.03 and abs(strange.confirmed) < 0.06
    assert strange.claimed == pytest.approx(same.claimed)
    tilted = agreement(q, 0.6 * q + 0.8 * noise)  # of correlation 0.6
    assert tilted.confirmed == pytest.approx(0.6 * tilted.claimed, abs=0.05)


def test_agreement_of_critics_and_energies_of_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.agreement import main

    output = benched(main, monkeypatch, runs / "aepo", "--states", 16, "--actions", 4, "--against", "aepo literal")
    cosines, lengths = output.split("Energies: length")
    found = {name: [cells(part, f"aepo {name}") for part in (cosines, lengths)] for name in ("guided", "literal")}
    assert found["literal"][0] == [1] * 5
    assert all(-1 <= cosine < 1 for cosine in found["guided"][0])
    assert all(length > 0 for _, all_lengths in found.values() for length in all_lengths)


def cells(table: str, row: str) -> list[float]:
    return next([float(cell) for cell in line.split("│")[2:-1]] for line in table.splitlines() if f" {row} " in line)

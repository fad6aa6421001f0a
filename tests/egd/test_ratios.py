"""Log-ratios learned from samples, against the exact ones of Gaussian mixtures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from egd.bench import ratios
from egd.bench.ratios import LEVELS, RatioProblem, RatioSettings
from egd.metrics import energy_distance
from egd.schedules import EDM

QUICK = RatioSettings(samples=400, points=100, steps=24, training=700)


@pytest.fixture(scope="module")
def moved() -> RatioProblem:
    return ratios.problems(QUICK)["moved-2d"]


def test_the_exact_energy_is_that_of_the_clean_ratio(moved: RatioProblem) -> None:
    """E_t = -log E[p(x_0) / q(x_0) | x_t], by samples of the exact posterior."""
    g = torch.Generator().manual_seed(0)
    t = EDM().time(torch.tensor(0.7).double().log().neg()).expand(5)
    x = moved.q.noised(EDM(), t, g)
    log_w, means, covs = moved.q.posterior(EDM(), x, t)
    for i in range(5):
        k = torch.multinomial(log_w[i].exp(), 40_000, replacement=True, generator=g)
        z = torch.randn(40_000, 2, generator=g, dtype=torch.float64)
        x0 = means[i, k] + torch.einsum("bij,bj->bi", torch.linalg.cholesky(covs[0])[k], z)
        estimate = -(-moved.clean(x0)).exp().mean().log()
        assert moved.energy(x, t)[i].item() == pytest.approx(estimate.item(), abs=0.05)


def test_no_weight_exceeds_the_share_of_the_target(moved: RatioProblem) -> None:
    x = moved.p.sample(2000, torch.Generator().manual_seed(0))
    assert (-moved.clean(x)).max() <= -torch.tensor(QUICK.share).log() + 1e-9


def test_exact_guidance_leads_to_the_target(moved: RatioProblem) -> None:
    found = {row.estimator: row for row in ratios.run(moved, ["exact", "none"], QUICK)}
    exact, none = found["exact"], found["none"]
    assert set(exact.cosine) == {1.0}
    assert exact.distance < 0.05
    assert none.distance > 0.4
    assert exact.mean_error < 0.1
    assert len(exact.error) == len(LEVELS)
    target = moved.p.sample(400, torch.Generator().manual_seed(8))
    assert energy_distance(target, moved.q.sample(400, torch.Generator().manual_seed(9))) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["noised discriminator", "CEP, exact w"])
def test_learned_energies_point_to_the_target(moved: RatioProblem, estimator: str) -> None:
    (row,) = ratios.run(moved, [estimator], QUICK)
    assert row.cosine[LEVELS.index(2.0)] > 0.85
    assert row.error[LEVELS.index(2.0)] < 0.4  # 1 is no guidance
    assert row.distance < 0.5  # of 1.6 without


def test_an_expansion_is_right_at_little_noise_only(moved: RatioProblem) -> None:
    (row,) = ratios.run(moved, ["DPS, exact w"], QUICK)
    assert row.error[0] < 0.1
    assert row.error[LEVELS.index(2.0)] > 0.5


@pytest.mark.pictures
def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    from egd.cli import main as cli

    def egd(*arguments: Any) -> Any:
        if "bench" not in {g.name for g in cli.app.registered_groups}:
            cli.add_commands()
        return CliRunner().invoke(cli.app, ["bench", "ratios", *map(str, arguments)])

    files = tmp_path / "rows.json", tmp_path / "rows.md", tmp_path / "figures" / "rows.png"
    chosen = "-c", "chosen-2d", "-e", "none", "-e", "CEP, learned w"
    result = egd("--smoke", *chosen, "--json", files[0], "--markdown", files[1], "--figure", files[2])
    assert result.exit_code == 0, result.output
    assert "CEP, learned w" in result.output and "never pushed" in result.output  # what is warned of is a line of its own
    assert [row["estimator"] for row in json.loads(files[0].read_text())] == ["none", "CEP, learned w"]
    assert "| CEP, learned w |" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"\x89PNG")
    result = egd("-c", "moved-3d")
    assert result.exit_code == 2
    assert "no problem is called 'moved-3d'" in result.output

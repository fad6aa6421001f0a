"""A small world that needs no download: a maze2d dataset and a recipe of seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
experiment: offline_rl
agent: aepo
tasks: {egd/maze2d/umaze-v0: {}}
data: {generator: {name: maze2d, map_name: umaze, steps: 1500, noise: 0.5, seed: 0}}
denoiser: {width: 16, blocks: 2, steps: 30, batch: 32}
critic: {width: 16, layers: 2, steps: 30, batch: 32}
energy_network: {width: 16, layers: 2, steps: 30, batch: 32}
calibration: {samples: 128, grid: 5, every: 10}
guidance: {energy: {name: support_samples, samples: 4}, beta: 3}
variants:
  literal: {energy: {name: analytic}, rule: rescaled, posterior: posterior1, clip_x0: false, omegas: [0.5]}
evaluation: {episodes: 2, envs: 2}
sampler: {steps: 3, spacing: time}
checkpoint_every: 10
log_every: 7
budgets: {smoke: {denoiser: {steps: 5}}}
"""


SHORT = 40
"""Steps of an episode: tests of the machinery need no whole ones, and would spend most of their time in them."""


@pytest.fixture(scope="session")
def tiny() -> str:
    """A recipe of seconds, as text."""
    return RECIPE


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari store of the session."""
    return tmp_path_factory.mktemp("minari")


@pytest.fixture
def recipe(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file of seconds, its dataset made once a session."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    monkeypatch.setattr("rl.envs.maze2d.step_limit", lambda name: SHORT)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def egd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line: egd('run', ...) -> result with exit_code and output."""
    from typer.testing import CliRunner

    from egd.cli import main as cli

    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setattr(cli.errors, "width", 200)
    if "data" not in {g.name for g in cli.app.registered_groups}:
        cli.add_commands()
    return lambda *arguments: CliRunner().invoke(cli.app, [str(a) for a in arguments])


_TRAINED: dict[str, Path] = {}


@pytest.fixture
def trained(egd: Any, recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``OUT`` of ``egd run`` on the recipe as it is: a copy of what was trained once a session."""
    if not _TRAINED:
        out = tmp_path_factory.mktemp("trained") / "out"
        result = egd("run", recipe, "--out", out)
        assert result.exit_code == 0, result.output
        _TRAINED["out"] = out
    return Path(shutil.copytree(_TRAINED["out"], tmp_path / "trained"))

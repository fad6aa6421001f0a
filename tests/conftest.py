"""What tests share: schedules, a Gaussian mixture whose every quantity is known, and a seeded generator."""

from __future__ import annotations

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch

from egd.mixtures import GaussianMixture
from egd.schedules import VPCosine, VPLinear
from egd.training.learners import Fit
from egd.types import Schedule

torch.set_num_threads(1)  # networks of tests are tiny: threads would cost more than they give


@pytest.fixture(params=[VPLinear(), VPCosine()], ids=["linear", "cosine"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that are compared must both have been trained."""
    monkeypatch.setenv("EGD_STORE", "")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on how many numbers those before it have drawn."""
    torch.manual_seed(0)


EXTENDING = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def two_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An objective with a network of its own that has two outputs, of a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    source = re.search(r'^```python title="my_network.py"\n(.*?)^```$', EXTENDING.read_text(), re.MULTILINE | re.DOTALL)
    assert source is not None
    Path("my_network.py").write_text(source[1])
    return "my_network.py:SecondCumulant"


PICTURES = {
    "png": b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.fixture(autouse=True)
def empty_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save empty pictures of figures, but for tests marked ``pictures``: pixels take a third of a tiny run."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", _save_empty)


def _save_empty(figure: Any, target: Any, *arguments: Any, **settings: Any) -> None:
    kind = settings.get("format") or Path(target).suffix[1:]
    if kind not in PICTURES:
        figure.canvas.print_figure(target, *arguments, **settings)
    elif hasattr(target, "write"):
        target.write(PICTURES[kind])
    else:
        Path(target).write_bytes(PICTURES[kind])


@pytest.fixture
def mixture() -> GaussianMixture:
    return GaussianMixture.random(3, 2, seed=2)  # weights 0.40, 0.24, 0.37


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def diverging_rate(monkeypatch: pytest.MonkeyPatch) -> str:
    """The largest learning rate that a recipe may give, which then is one that diverges at once."""
    made = Fit.__init__

    def init(self: Fit, module: torch.nn.Module, *, lr: float, **settings: Any) -> None:
        made(self, module, lr=1e38 if lr == 1000 else lr, **settings)

    monkeypatch.setattr(Fit, "__init__", init)
    return "1000"

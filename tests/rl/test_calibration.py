"""What a calibration takes back from a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from egd.checkpoint import prefixed
from egd.posteriors import calibrate
from egd.schedules import VPLinear
from rl.config import AdvantageCalibrationConfig
from rl.parts.calibration import AdvantageCalibration

NONE: Any = SimpleNamespace(schedule=None, sample=None)
"""Neither a behaviour policy nor a critic is asked."""


def state(grid: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def sample(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return torch.randn(n, 2, generator=generator), None

    moments = calibrate(lambda x, t, c: 0.5 * x, VPLinear(), sample, generator=generator, grid=grid, samples=64).state()
    return {**prefixed("clip0", moments), **prefixed("clip1", moments), "advantage_std": torch.tensor(2.0)}


def test_a_calibration_comes_back_as_it_was() -> None:
    calibration = AdvantageCalibration(NONE, NONE, AdvantageCalibrationConfig(grid=4), torch.device("cpu"))
    calibration.load(state(4))
    assert {name: float(value.sum()) for name, value in calibration.state().items()} == {
        name: float(value.sum()) for name, value in state(4).items()
    }


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (state(3), "calibration.grid is 4"),
        (state(4) | {"advantage_std": torch.tensor(-1.0)}, "advantage_std"),
        (state(4) | {"advantage_std": torch.ones(2)}, "advantage_std"),
        (state(4) | {"clip1.raw.residual": torch.ones(4, dtype=torch.float16)}, "float32"),
    ],
)
def test_a_calibration_of_other_settings_or_types_is_refused(wrong: dict[str, Tensor], word: str) -> None:
    calibration = AdvantageCalibration(NONE, NONE, AdvantageCalibrationConfig(grid=4), torch.device("cpu"))
    with pytest.raises(ValueError, match=word):
        calibration.load(wrong)

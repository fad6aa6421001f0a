"""Algorithm 1 of AEPO as one loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from egd.runs.checkpoint import group, prefixed
from egd.runs.safe_names import module_name
from egd.training.learners import Learner, Metrics
from rl.parts.calibration import AdvantageCalibration


class Joint:
    """Every part takes one step an iteration, as long as it has steps left; ``limits`` are those of the parts before the
    energies, which go on to the end. An energy network is standardised by its first batch, when the critic is hardly trained:
    only in phases does it start at the scale of what it has to learn.
    """

    def __init__(
        self,
        before: Mapping[str, Learner],
        limits: Mapping[str, int],
        calibration: AdvantageCalibration,
        energies: Mapping[str, Learner],
        total: int,
        every: int,
    ) -> None:
        self.calibration, self.every, self.limits, self.total = calibration, every, limits, total
        self.learners: dict[str, Learner] = {**before, **{f"energy_{name}": learner for name, learner in energies.items()}}
        self.last = list(before)[-1]
        self.step = 0

    def update(self, generator: torch.Generator) -> Metrics:
        """One iteration; the variances are estimated again every so many of them, and after the last."""
        metrics: Metrics = {}
        for name, learner in self.learners.items():
            if self.step < self.limits.get(name, self.total):
                metrics |= {f"{name}/{key}": value for key, value in learner.update(generator).items()}
            if name == self.last and self.step % self.every == 0:  # before the energies
                self.calibration.update(generator)
        self.step += 1
        if self.step == self.total:
            self.calibration.update(generator)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Of all parts."""
        parts = {
            k: v for name, learner in self.learners.items() for k, v in prefixed(module_name(name), learner.state()).items()
        }
        return {**parts, **prefixed("calibration", self.calibration.state()), "step": torch.tensor(self.step)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``."""
        for name, learner in self.learners.items():
            learner.load(group(module_name(name), state))
        self.calibration.load(group("calibration", state))
        self.step = int(state["step"])

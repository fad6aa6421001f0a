"""Joint training: Algorithm 1 of AEPO as one loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.checkpoint import group, prefixed
from egd.runs.safe_names import module_name
from egd.training.learners import Metrics
from rl.parts.base import Part
from rl.parts.calibration import AdvantageCalibration


class Joint(Part):
    """Parts trained together: each takes one step per iteration until its own steps are done; the energies continue to the end.

    An energy network is standardised by its first batch, when the critic is hardly trained; only in phased training does it
    start at the scale of its targets.
    """

    name = "joint"

    def __init__(self, before: Sequence[Part], calibration: AdvantageCalibration, energies: Sequence[Part], every: int) -> None:
        self.calibration, self.every, self.after = calibration, every, [*before, calibration, *energies]  # for the key
        self.limits = {part.name: part.steps for part in before}
        self.learners = {part.name: part.learner for part in (*before, *energies)}
        self.last = before[-1].name
        self.steps = energies[0].steps if energies else max(self.limits.values())
        self.step = 0

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {name: module for part in self.after for name, module in part.networks().items()}

    @override
    def prepare(self, phase: str, generator: torch.Generator) -> None:
        self.calibration.prepare(phase, generator)

    def update(self, generator: torch.Generator) -> Metrics:
        """Take one iteration, and return metrics; the calibration is updated at every ``every``-th and after the last."""
        metrics: Metrics = {}
        for name, learner in self.learners.items():
            if self.step < self.limits.get(name, self.steps):
                metrics |= {f"{name}/{key}": value for key, value in learner.update(generator).items()}
            if name == self.last and self.step % self.every == 0:  # before the energies
                self.calibration.update(generator)
        self.step += 1
        if self.step == self.steps:
            self.calibration.update(generator)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return the state of all parts."""
        parts = {
            k: v for name, learner in self.learners.items() for k, v in prefixed(module_name(name), learner.state()).items()
        }
        return {**parts, **prefixed("calibration", self.calibration.state()), "step": torch.tensor(self.step)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``."""
        for name, learner in self.learners.items():
            learner.load(group(module_name(name), state))
        self.calibration.load(group("calibration", state))
        self.step = int(state["step"])

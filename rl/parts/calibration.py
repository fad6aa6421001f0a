"""Estimates from a trained behaviour policy and critic: posterior variances over t, and the spread of the advantages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.posteriors import Moments
from egd.training.calibration import Calibration
from egd.training.learners import Metrics
from egd.types import Energy
from rl.config import AdvantageCalibrationConfig
from rl.critics.base import MinusAdvantage, ValueFunction
from rl.parts.base import Part
from rl.parts.behaviour import Behaviour


class AdvantageCalibration(Part, nn.Module):
    """Posterior variances over t, with and without clipping of x_0, and the spread of the advantages, from a pass over the
    data.

    The estimates are buffers, so that those of several runs can be stacked.

    ``value`` values samples of ``behaviour``; ``after`` has the parts that train the two.
    """

    name, steps = "calibration", 1
    advantage_std: Tensor

    def __init__(
        self,
        behaviour: Behaviour,
        value: ValueFunction,
        config: AdvantageCalibrationConfig,
        device: torch.device,
        *,
        after: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        self.behaviour, self.value, self.config, self.after = behaviour, value, config, after
        self.settings = config.model_dump(mode="json")
        self.register_buffer("advantage_std", torch.ones((), device=device))
        denoisers = {"clip0": lambda: behaviour.denoiser(False), "clip1": lambda: behaviour.denoiser(True)}
        size = config.model_dump(include={"grid", "samples"})
        self.posterior = Calibration(denoisers, behaviour.schedule, behaviour.sample, **size)
        self.version = 0

    @override
    def networks(self) -> dict[str, nn.Module]:
        return {"calibration": self}

    @override
    def prepare(self, phase: str, generator: torch.Generator) -> None:
        if not self.moments or phase in {part.name for part in self.after}:
            self.update(generator)

    def energy(self, scale: str = "raw") -> Energy:
        """Return the energy E(a, s) = (V(s) - Q(s, a)) / scale: minus the advantage, raw or in units of its spread.

        E differs from -Q by a function of s alone, so it tilts mu in the same way, but a network need not learn V.
        """
        unit = self.advantage_std if scale == "advantage_std" else torch.ones_like(self.advantage_std)
        return MinusAdvantage(self.value, unit)

    @property
    def moments(self) -> dict[bool, Moments]:
        """Moments of the denoiser with x_0 clipped (True) and not clipped (False)."""
        return {name == "clip1": moments for name, moments in self.posterior.moments.items()}

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate everything anew, and return metrics."""
        self.posterior.update(generator)
        action, state = self.behaviour.sample(self.config.samples, generator)
        advantage = self.value.q(state, action) - self.value.v(state)
        self.advantage_std = advantage.std().clamp(min=1e-6)
        self.version += 1
        return {"advantage_std": self.advantage_std}

    def state(self) -> dict[str, Tensor]:
        """Return the moments and the spread, for the checkpoint."""
        return {**self.posterior.state(), "advantage_std": self.advantage_std}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors returned by ``state``. Raises ValueError where they do not fit these settings."""
        std = state["advantage_std"]
        if std.shape or std.dtype != torch.float32 or not bool(std > 0):
            raise ValueError(f"advantage_std is {std.dtype} {tuple(std.shape)} where it is one positive float32 number")
        if len(state) > 1:  # there are no moments before the first update of a joint training
            self.posterior.load(state)
        self.advantage_std = std
        self.version += 1

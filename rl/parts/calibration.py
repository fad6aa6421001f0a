"""What is estimated once from a trained behaviour policy and critic: posterior variances over t, the advantages' spread."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egd.posteriors import Moments
from egd.training.calibration import Calibration
from egd.training.learners import Metrics
from rl.critics.base import ValueFunction
from rl.parts.behaviour import Behaviour
from rl.runs.config import CalibrationConfig


class AdvantageCalibration(nn.Module):
    """Posterior variances over t, with and without clipping of x_0, and the spread of the advantages, from a pass over
    the data: buffers, so that those of many runs can be stacked.
    """

    advantage_std: Tensor

    def __init__(self, behaviour: Behaviour, critic: ValueFunction, settings: CalibrationConfig, device: torch.device) -> None:
        super().__init__()
        self._of = behaviour, critic, settings  # in a tuple, as none of it is a part of this module
        self.register_buffer("advantage_std", torch.ones((), device=device))
        denoisers = {"clip0": lambda: behaviour.denoiser(False), "clip1": lambda: behaviour.denoiser(True)}
        size = settings.model_dump(include={"grid", "samples"})
        self.posterior = Calibration(denoisers, behaviour.schedule, behaviour.sample, **size)
        self.version = 0

    @property
    def moments(self) -> dict[bool, Moments]:
        """Those of the denoiser with x_0 clipped (True) and not."""
        return {name == "clip1": moments for name, moments in self.posterior.moments.items()}

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate everything anew."""
        behaviour, critic, settings = self._of
        self.posterior.update(generator)
        action, state = behaviour.sample(settings.samples, generator)
        advantage = critic.q(state, action) - critic.v(state)
        self.advantage_std = advantage.std().clamp(min=1e-6)
        self.version += 1
        return {"advantage_std": self.advantage_std}

    def state(self) -> dict[str, Tensor]:
        """Give the moments and the spread, for the checkpoint."""
        return {**self.posterior.state(), "advantage_std": self.advantage_std}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave. ValueError where it is not of these settings."""
        std = state["advantage_std"]
        if std.shape or std.dtype != torch.float32 or not bool(std > 0):
            raise ValueError(f"advantage_std is {std.dtype} {tuple(std.shape)} where it is one positive float32 number")
        if len(state) > 1:  # none are there before the first update of a joint training
            self.posterior.load(state)
        self.advantage_std = std
        self.version += 1

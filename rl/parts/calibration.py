"""What is estimated once from a trained behaviour policy and critic: posterior variances over t, the advantages' spread."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from egd.posteriors import Moments, calibrate
from egd.runs.checkpoint import group, prefixed
from egd.training.learners import Metrics
from rl.critics.base import ValueFunction
from rl.parts.behaviour import Behaviour
from rl.runs.config import CalibrationConfig


class Calibration(nn.Module):
    """Posterior variances over t, with and without clipping of x_0, and the spread of the advantages, from a pass over
    the data: buffers, so that those of many runs can be stacked.
    """

    advantage_std: Tensor

    def __init__(self, behaviour: Behaviour, critic: ValueFunction, settings: CalibrationConfig, device: torch.device) -> None:
        super().__init__()
        self._of = behaviour, critic, settings  # in a tuple, as none of it is a part of this module
        self.register_buffer("advantage_std", torch.ones((), device=device))
        self.clips = nn.ModuleDict()
        self.version = 0

    @property
    def moments(self) -> dict[bool, Moments]:
        """Of the denoiser with x_0 clipped (True) and not."""
        return {name == "clip1": Moments.load(_named(module)) for name, module in self.clips.items()}

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate everything anew."""
        behaviour, critic, settings = self._of
        for clip in (False, True):
            moments = calibrate(
                behaviour.denoiser(clip),
                behaviour.schedule,
                behaviour.sample,
                generator=generator,
                grid=settings.grid,
                samples=settings.samples,
            )
            self._keep(f"clip{int(clip)}", moments.state())
        action, state = behaviour.sample(settings.samples, generator)
        advantage = critic.q(state, action) - critic.v(state)
        self.advantage_std = advantage.std().clamp(min=1e-6)
        self.version += 1
        return {"advantage_std": self.advantage_std}

    def _keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.clips[name] = nn.Module()
        for key, tensor in tensors.items():
            self.clips[name].register_buffer(key.replace(".", "/"), tensor)

    def state(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        moments = {k: v for name, module in self.clips.items() for k, v in prefixed(name, _named(module)).items()}
        return {**moments, "advantage_std": self.advantage_std}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave. ValueError where it is not of these settings."""
        std, (_, _, settings) = state["advantage_std"], self._of
        if std.shape or std.dtype != torch.float32 or not bool(std > 0):
            raise ValueError(f"advantage_std is {std.dtype} {tuple(std.shape)} where it is one positive float32 number")
        for name in ("clip0", "clip1"):
            if moments := group(name, state):
                if len(Moments.load(moments).checked().t) != settings.grid:
                    raise ValueError(
                        f"{name} was estimated at {len(moments['t'])} times, and calibration.grid is {settings.grid}"
                    )
                self._keep(name, moments)
        self.advantage_std = std
        self.version += 1


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Buffers whose names may have dots."""
    return {name.replace("/", "."): tensor for name, tensor in module.named_buffers()}

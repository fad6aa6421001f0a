"""The UNet of ``diffusers`` as a network of (x_t, t, c), and its pipeline."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DModel
from torch import Tensor, nn

from egd.errors import UserError
from egd.experiments.images.config import UNetConfig
from egd.pipelines.guided import EnergyGuidedPipeline
from egd.schedules import Diffusers
from egd.types import Context


class UNetNetwork(nn.Module):
    """A network of (x_t, t, c) for t in (0, 1]; the UNet receives the timestep that its scheduler assigns to t."""

    def __init__(self, unet: Any, schedule: Diffusers) -> None:
        super().__init__()
        self.unet, self.schedule = unet, schedule

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Evaluate the UNet: (B, C, H, W), (B,), c (unused) -> (B, C, H, W)."""
        out: Tensor = self.unet(x, self.schedule.timestep(t)).sample
        return out


def make_network(config: UNetConfig, channels: int, size: int, schedule: Diffusers) -> UNetNetwork:
    """Create an untrained network. Raises UserError where the images cannot be halved as often as the widths require."""
    levels = len(config.widths)
    if size % 2 ** (levels - 1):
        raise UserError(f"{levels} widths halve the image {levels - 1} times, and {size} pixels cannot be", key="unet.widths")
    unet = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        add_attention=config.attention,
    )
    return UNetNetwork(unet, schedule)


def make_pipeline(network: UNetNetwork) -> EnergyGuidedPipeline:
    """Create the pipeline for sampling, without a progress bar."""
    pipe = EnergyGuidedPipeline(network.unet.eval(), network.schedule.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe

"""The networks of QGPO (arXiv:2304.12824) as published, for measurements at their shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from egd.tensors import flat_context
from egd.types import Context

SETTINGS: dict[str, Any] = {
    "denoiser": {"lr": 1e-4, "decay": False, "ema": 0.0},
    "critic": {"activation": "relu", "layer_norm": False},
    "energy_network": {"layers": 4},
}
"""QGPO's settings in a recipe: no average of the noise model, a plain ReLU critic, one more layer in the energy network."""


class ScoreUNet(nn.Module):
    """The noise model of QGPO with 1.6 million parameters: residual blocks A -> 512 -> 256 -> 128 -> 256 -> 512 -> A with skip
    connections. State and time enter every block through one vector of 128 entries.
    """

    frequencies: Tensor

    def __init__(self, event: int, context: int, *, width: int = 512) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.register_buffer("frequencies", 30 * torch.randn(16))
        self.time = nn.Linear(32, 32)
        self.context = nn.Sequential(nn.Linear(context, 32), nn.SiLU())
        self.condition = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        self.down = nn.ModuleList([_Block(event, width), _Block(width, half), _Block(half, quarter)])
        self.middle = _Block(quarter, quarter)
        self.up = nn.ModuleList([_Block(2 * quarter, half), _Block(2 * half, width)])
        self.last = nn.Linear(2 * width, event)

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Predict the noise: (B, event), (B,), c -> (B, event)."""
        angles = 2 * math.pi * t[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        condition = self.condition(torch.cat([time, self.context(torch.cat(flat_context(c), 1))], 1))
        skips = []
        for block in self.down:
            x = block(x, condition)
            skips.append(x)
        x = self.middle(x, condition)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], 1), condition)
        out: Tensor = self.last(torch.cat([x, skips.pop()], 1))
        return out


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.condition = nn.Linear(128, outputs)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        silu = nn.functional.silu
        h = silu(self.first(x)) + self.condition(silu(condition))
        out: Tensor = silu(self.second(h)) + self.skip(x)
        return out

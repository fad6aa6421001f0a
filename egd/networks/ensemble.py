"""Ensembles of critics as batched products."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.networks.mlp import ACTIVATIONS, LayerNorm


class EnsembleLinear(nn.Module):
    """Ensemble of ``members`` independent linear layers as one batched product: (members, B, in) -> (members, B, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # nn.Linear's own initialisation
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers: (members, B, in) -> (members, B, out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class LastEnsembleLinear(EnsembleLinear):
    """Last layer of an ensemble, in float32 whatever the precision of x, as ``egd.networks.mlp.LastLinear``."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


class EnsembleMLP(nn.Module):
    """Ensemble of ``members`` MLPs with one output each: (B, in) -> (members, B).

    A smooth activation (SiLU, Mish) matters here more than elsewhere, because first-order guidance uses the network's
    gradient at a point.
    """

    def __init__(
        self, members: int, inputs: int, *, width: int = 256, layers: int = 3, activation: str = "silu", layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.members = members
        sizes = [inputs] + [width] * layers
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts.append(EnsembleLinear(members, a, b))
            if layer_norm:
                parts.append(LayerNorm(b))
            parts.append(ACTIVATIONS[activation]())
        self.net = nn.Sequential(*parts, LastEnsembleLinear(members, width, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluate the MLPs on flat inputs (B, ...), concatenated: (members, B)."""
        x = torch.cat(inputs, 1)
        out: Tensor = self.net(x.expand(self.members, *x.shape))
        return out.squeeze(-1)

"""Networks for flat events: a residual noise model and an energy network, conditioned on time and context."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.tensors import differentiated_again, flat_context
from egd.types import Context

ActivationName = Literal["relu", "silu", "mish", "tanh", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis, in float32 whatever the precision of x: autocast does so on GPUs, not on CPUs.

    torch's kernel takes mean and deviation as constants in its higher derivatives. The third derivative of an energy, which the
    gradient of a second-order estimate needs, and the gradient of a forward-mode derivative are wrong with it (pytorch#175754).
    The normalisation is therefore written out where ``torch.func`` differentiates forwards or twice.
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype == torch.bfloat16 else x
        if not differentiated_again():
            return super().forward(x)
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return torch.addcmul(self.bias, centred * scale, self.weight)


class LastLinear(nn.Linear):
    """Last layer, in float32 whatever the precision of x: bfloat16's 8 bits of mantissa resolve a value of 300 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in) -> (..., out)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


def mlp(inputs: int, outputs: int, *, width: int, layers: int, activation: str, layer_norm: bool = False) -> nn.Sequential:
    """Make an MLP of ``layers`` hidden layers of one width, the last layer in float32: (B, inputs) -> (B, outputs)."""
    parts: list[nn.Module] = []
    for a, b in pairwise([inputs] + [width] * layers):
        parts += [nn.Linear(a, b), *([LayerNorm(b)] if layer_norm else []), ACTIVATIONS[activation]()]
    return nn.Sequential(*parts, LastLinear(width if layers else inputs, outputs))


class TimeEmbedding(nn.Module):
    """Time embedding of t by sinusoids at geometrically spaced frequencies, then one layer: (B,) -> (B, dim).

    The frequencies are DDPM's, with t in (0, 1] scaled by 1000.
    """

    frequencies: Tensor

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        half = dim // 2
        self.register_buffer("frequencies", 1000 * torch.exp(-math.log(1e4) * torch.arange(half) / half), persistent=False)
        self.layer = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t: (B,) -> (B, dim)."""
        angles = t[:, None] * self.frequencies
        out: Tensor = nn.functional.silu(self.layer(torch.cat([angles.sin(), angles.cos()], 1)))
        return out


class NoiseMLP(nn.Module):
    """Residual MLP eps(x_t, t, c) for flat events, of ``blocks`` residual blocks h <- h + W act(LayerNorm(h)) of one width.

    x is (B, event), c any context whose flattened tensors have ``context`` entries a row in all. The last layer starts at zero.
    """

    def __init__(self, event: int, context: int = 0, *, width: int = 256, blocks: int = 7, time: int = 32) -> None:
        super().__init__()
        self.time = TimeEmbedding(time)
        self.first = nn.Linear(event + time + context, width)
        self.blocks = nn.ModuleList(nn.Sequential(LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks))
        final = LastLinear(width, event)
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        self.last = nn.Sequential(LayerNorm(width), nn.SiLU(), final)

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Predict eps: (B, event), (B,), c -> (B, event)."""
        h = self.first(torch.cat([x, self.time(t), *flat_context(c)], 1))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.last(h)
        return out


class EnergyNetwork(nn.Module):
    """Network of E_Theta(x_t, t, c), (B,), whose output is centre + scale times that of its layers.

    The two buffers, set from the targets before training (``standardise``), let the layers work at unit scale whatever the
    energy's units.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, targets: Tensor) -> None:
        """Set centre and scale from a sample of regression targets (B,); a single target sets the centre alone."""
        self.centre.copy_(targets.mean())
        if len(targets) > 1:
            self.scale.copy_(targets.std().clamp(min=1e-6))


class EnergyMLP(EnergyNetwork):
    """MLP of E_Theta(x_t, t, c) for flat events, with ``layers`` hidden layers and one output."""

    def __init__(
        self, event: int, context: int = 0, *, width: int = 256, layers: int = 3, time: int = 32, activation: str = "silu"
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(time)
        sizes = [event + time + context] + [width] * layers
        act = ACTIVATIONS[activation]
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), act())]
        self.net = nn.Sequential(*hidden, LastLinear(width, 1))

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, event), (B,), c -> (B,)."""
        out: Tensor = self.net(torch.cat([x, self.time(t), *flat_context(c)], 1))
        return self.centre + self.scale * out.squeeze(1)

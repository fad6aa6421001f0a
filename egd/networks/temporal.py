"""Networks for events (H, D) of H steps with D entries each: trajectories, signals, motions."""

from __future__ import annotations

from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from egd.networks.mlp import ACTIVATIONS, ActivationName, EnergyNetwork, LastLinear, TimeEmbedding
from egd.tensors import flat_context, inpaint
from egd.types import Context

__all__ = ["TemporalEnergy", "TemporalUNet"]


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the precision of x: autocast does so on GPUs, not on CPUs."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


class Residual(nn.Module):
    """Residual block of two convolutions along the steps, with the embedding added in between."""

    def __init__(self, inputs: int, outputs: int, embedded: int, kernel: int, activation: ActivationName) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]

        def block(width: int) -> nn.Sequential:
            convolution = nn.Conv1d(width, outputs, kernel, padding=kernel // 2)
            return nn.Sequential(convolution, GroupNorm(_groups(outputs), outputs), act())

        self.first, self.second = block(inputs), block(outputs)
        self.shift = nn.Linear(embedded, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Apply the block: (B, inputs, H), (B, embedded) -> (B, outputs, H)."""
        out: Tensor = self.second(self.first(h) + self.shift(embedded)[..., None]) + self.skip(h)
        return out


class TemporalSettings(TypedDict, total=False):
    """Settings of both networks; the defaults are the encoder's."""

    width: int
    levels: int
    kernel: int
    time: int
    activation: ActivationName
    given: Tensor | None


class Encoder(nn.Module):
    """Encoder of x, t and c into features of ever fewer steps, which the U-Net and the energy share.

    Every level but the first has half the steps and twice the channels. ``given`` marks entries of x that c (B, k) holds, in
    the event's order: they replace the entries of x, so that the network sees them without noise. c is embedded with t where
    ``context``, the number of its entries, is not 0. Raises ValueError for an even kernel.
    """

    def __init__(
        self,
        dim: int,
        context: int = 0,
        *,
        width: int = 32,
        levels: int = 3,
        kernel: int = 5,
        time: int = 32,
        activation: ActivationName = "mish",
        given: Tensor | None = None,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} steps has no middle; choose an odd number")
        self.context, self.time = context, TimeEmbedding(time)
        self.embedded = time + context
        self.block = partial(Residual, embedded=self.embedded, kernel=kernel, activation=activation)
        self.widths = [width * 2**level for level in range(levels)]
        self.levels = nn.ModuleList(self.block(a, b) for a, b in zip([dim, *self.widths], self.widths, strict=False))
        self.down = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in self.widths[:-1])
        self.register_buffer("given", given, persistent=False)

    def forward(self, x: Tensor, t: Tensor, c: Context) -> tuple[list[Tensor], Tensor]:
        """Encode: (B, H, D), (B,), c -> features (B, width, steps) of every level, and the embedding (B, embedded)."""
        h = self._placed(x, c).mT
        embedded = torch.cat([self.time(t), *(flat_context(c) if self.context else [])], 1)
        features: list[Tensor] = []
        for level, residual in enumerate(self.levels):
            h = residual(self.down[level - 1](h) if level else h, embedded)
            features.append(h)
        return features, embedded

    def _placed(self, x: Tensor, c: Context) -> Tensor:
        """Return x with the given entries replaced by those of c."""
        given = self.get_buffer("given")
        if given is None:
            return x
        return inpaint(x, given, torch.cat(flat_context(c), 1).to(x.dtype))


class TemporalUNet(nn.Module):
    """U-Net that predicts eps, x_0 or the like for events (B, H, D) of any number H of steps.

    Its convolutions run along the steps at ``levels`` resolutions, and the features of the encoder are handed to the decoder.
    It is the network of Diffuser (arXiv:2205.09991) figure A1, with one residual block for each level. The last layer starts at
    zero.

    ``given`` (H, D), booleans, marks entries that c (B, k) holds: the network sees them in place and without noise, and so
    learns the denoiser of the other entries given these; ``egd.wrappers.Inpaint`` makes the samples hold them. ``context`` is
    the number of entries of c where it is to be embedded with t. Raises ValueError for an even kernel.
    """

    def __init__(self, dim: int, context: int = 0, **settings: Unpack[TemporalSettings]) -> None:
        super().__init__()
        self.encoder = Encoder(dim, context, **settings)
        widths, block = self.encoder.widths, self.encoder.block
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(block(above + w, w) for above, w in zip([*widths[1:], widths[-1]], widths, strict=True))
        self.last = LastLinear(widths[0], dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Predict: (B, H, D), (B,), c -> (B, H, D)."""
        features, embedded = self.encoder(x, t, c)
        h = self.middle(features[-1], embedded)
        for skip, residual in zip(reversed(features), reversed(self.up), strict=True):
            wide = h if h.shape[-1] == skip.shape[-1] else h.repeat_interleave(2, -1)[..., : skip.shape[-1]]
            h = residual(torch.cat([wide, skip], 1), embedded)
        out: Tensor = self.last(h.mT)
        return out


class TemporalEnergy(EnergyNetwork):
    """Network of E_Theta(x_t, t, c) for events (B, H, D) of H = ``steps`` steps: ``TemporalUNet``'s encoder, then one layer.

    Diffuser's value of noised trajectories is such a network, trained by the objective ``mse``. Settings and errors are as in
    ``TemporalUNet``.
    """

    def __init__(self, steps: int, dim: int, context: int = 0, **settings: Unpack[TemporalSettings]) -> None:
        super().__init__()
        self.encoder = Encoder(dim, context, **settings)
        for _ in self.encoder.down:
            steps = (steps + 1) // 2
        self.last = LastLinear(self.encoder.widths[-1] * steps + self.encoder.embedded, 1)

    def forward(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        """Estimate E_t: (B, H, D), (B,), c -> (B,)."""
        features, embedded = self.encoder(x, t, c)
        out: Tensor = self.last(torch.cat([features[-1].flatten(1), embedded], 1))
        return self.centre + self.scale * out.squeeze(1)


def _groups(channels: int, at_most: int = 8) -> int:
    """Return the largest divisor of the channels that is not above ``at_most``."""
    return max(n for n in range(1, at_most + 1) if channels % n == 0)

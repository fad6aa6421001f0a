"""Seven data sets in [-4.5, 4.5]^2, generated as in CEP (arXiv:2304.12824), each with an energy in [0, 1] (low = wanted).

CEP labels the points when it draws them, and its "energy" is high where samples are wanted: the labels here are one minus
CEP's. The energies here are functions of position that are smooth everywhere, since closed forms need the gradient. On the data
they equal the labels, except where points of different labels meet. For 2spirals they do so up to the noise of the points (0.03
on average), and for swissroll they level off at 0 beyond the roll's end. CEP gives pinwheel no energy; here the energy falls
from arm to arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from egd.errors import UserError, nearest
from egd.experiments.toy2d.energies import RingLabel, SoftLabel, columns, inward, outward
from egd.types import Energy

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DataSet:
    """A data set. ``draw(n, generator)`` returns points x_0 (n, 2) with their labels (n,); ``energy`` is a function of
    position.
    """

    name: str
    draw: Draw
    energy: Energy

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        """Draw points x_0 (n, 2), without a context."""
        return self.draw(n, generator)[0], None


def find_data_set(name: str, key: str = "task") -> DataSet:
    """Return the data set of this name. Raises UserError, naming ``key``, for one that does not exist."""
    if name not in DATA_SETS:
        raise UserError(f"no data set is called '{name}'; {nearest(name, DATA_SETS)}", key=key)
    return DATA_SETS[name]


MODES = 8
MODE_CENTRES = torch.tensor([[math.cos(a), math.sin(a)] for a in (math.pi / 2 + math.pi / 4 * i for i in range(MODES))])
MODE_CENTRES = MODE_CENTRES * 4 / 1.414
MODE_LABELS = 1 - torch.arange(MODES) / (MODES - 1)
RING_RADII = torch.tensor([0.75, 1.5, 2.25, 3.0])
RING_LABELS = torch.tensor([1.0, 0.0, 2 / 3, 1 / 3])
ARMS = 5


def _eight_gaussians(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from eight modes at 90, 135, ... degrees, each with a lower energy than the one before."""
    i = _integers(MODES, n, g)
    return MODE_CENTRES.to(g.device)[i] + 0.5 / 1.414 * _normal((n, 2), g), MODE_LABELS.to(g.device)[i]


def _two_spirals(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from two spirals of one and a half turns; the energy is low inside."""
    angle = 3 * math.pi * _uniform((n,), g).sqrt()
    arm = torch.stack([-angle.cos() * angle, angle.sin() * angle], 1) + 0.5 * _uniform((n, 2), g)
    x = _sign(n, g)[:, None] * arm / 3 + 0.1 * _normal((n, 2), g)
    return x, angle / 10


def _checkerboard(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from eight squares of side 2; the energy is low in two of four columns."""
    u = 4 * _uniform((n,), g) - 2
    v = _uniform((n,), g) - 2 * _integers(2, n, g) + u.floor() % 2
    x = 2 * torch.stack([u, v], 1)
    return x, u.floor() % 2


def _moons(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from two interleaved half circles; the energy is low on the lower one."""
    upper = _sign(n, g) > 0
    angle = math.pi * _uniform((n,), g)
    return _moon(angle, upper) + 0.2 * _normal((n, 2), g), upper.to(angle)


def _moon(angle: Tensor, upper: Tensor) -> Tensor:
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([2 * x - 1, 2 * y - 0.2], 1)


def _rings(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from four circles; the energy rises from the second (from within) over the fourth and the third to the first."""
    i, angle = _integers(len(RING_RADII), n, g), 2 * math.pi * _uniform((n,), g)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return RING_RADII.to(g.device)[i, None] * circle + 0.08 * _normal((n, 2), g), RING_LABELS.to(g.device)[i]


def _swiss_roll(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from a spiral of one and a half turns; the energy is low outside."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform((n,), g))
    x = (torch.stack([angle.cos() * angle, angle.sin() * angle], 1) + _normal((n, 2), g)) / 5
    return x, 1 - x.square().sum(1) / 9


def _pinwheel(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw from five arms, each with a lower energy than the one before."""
    k, z = _integers(ARMS, n, g), _normal((n, 2), g)
    return _pinwheel_arm(k, 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]), 1 - k / (ARMS - 1)


def _pinwheel_arm(k: Tensor, along: Tensor, across: Tensor) -> Tensor:
    angle = 2 * math.pi * k / ARMS + 0.25 * along.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([along * cos + across * sin, across * cos - along * sin], 1)


def _moons_energy() -> SoftLabel:
    upper = torch.arange(40) % 2 == 0
    angle = math.pi * ((torch.arange(20) + 0.5) / 20).repeat_interleave(2)
    return SoftLabel(_moon(angle, upper), upper.float(), 0.2)


def _pinwheel_energy() -> SoftLabel:
    k, along = torch.cartesian_prod(torch.arange(float(ARMS)), torch.linspace(0.1, 2.1, 21)).T
    return SoftLabel(_pinwheel_arm(k, along, 0 * along), 1 - k / (ARMS - 1), 0.2)


def _uniform(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g, device=g.device)


def _normal(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, device=g.device)


def _integers(below: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randint(below, (n,), generator=g, device=g.device)


def _sign(n: int, g: torch.Generator) -> Tensor:
    return 2.0 * _integers(2, n, g) - 1


DATA_SETS = {
    s.name: s
    for s in (
        DataSet("8gaussians", _eight_gaussians, SoftLabel(MODE_CENTRES, MODE_LABELS, 0.5 / 1.414)),
        DataSet("2spirals", _two_spirals, inward),
        DataSet("checkerboard", _checkerboard, columns),
        DataSet("moons", _moons, _moons_energy()),
        DataSet("rings", _rings, RingLabel(RING_RADII, RING_LABELS, 0.2)),  # wider than the noise: less steep between rings
        DataSet("swissroll", _swiss_roll, outward),
        DataSet("pinwheel", _pinwheel, _pinwheel_energy()),
    )
}

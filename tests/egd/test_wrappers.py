from __future__ import annotations

import pytest
import torch
from torch import Tensor

from egd.energies import DPS
from egd.mixtures import GaussianMixture
from egd.schedules import VPLinear
from egd.tensors import value_and_grad
from egd.types import Context, Denoiser, Schedule
from egd.wrappers import ClassifierFree, Clip, DynamicThreshold

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 0.2])


def linear(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    return 3 * x


@pytest.fixture
def exact(mixture: GaussianMixture) -> tuple[Denoiser, Tensor, Tensor]:
    t = torch.linspace(0.02, 0.98, 40)
    x = mixture.noised(VPLinear(), t, torch.Generator().manual_seed(3))
    return lambda x, t, c=None: mixture.denoise(VPLinear(), x, t), x, t


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_clipped_denoiser_stays_in_the_range_of_the_data(exact: tuple, straight_through: bool) -> None:
    denoiser, x, t = exact
    got, free = Clip(denoiser, LOW.double(), HIGH.double(), straight_through)(x, t), denoiser(x, t)
    inside = (free >= LOW) & (free <= HIGH)
    assert ((got >= LOW) & (got <= HIGH)).all()
    assert inside.any() and not inside.all()
    assert torch.equal(got[inside], free[inside])


def test_a_number_bounds_every_entry() -> None:
    assert torch.equal(
        Clip(linear, -1.0, 1.0)(torch.tensor([[-2.0, 0.25, 5.0]]), torch.ones(1)), torch.tensor([[-1.0, 0.75, 1.0]])
    )


def test_bounds_that_are_swapped_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need low < high, got 1\.0 and -1\.0"):
        Clip(lambda x, t, c=None: x, 1.0, -1.0)


def test_straight_through_has_the_derivative_of_the_bare_denoiser_where_clipping_has_none() -> None:
    x, t = torch.tensor([[0.1, 0.9], [-0.9, -0.9]]), torch.ones(2)
    energy = lambda x0, c=None: 0.5 * (x0 - 0.25).square().sum(1)  # noqa: E731
    _, clipped = value_and_grad(lambda x: DPS(energy, Clip(linear, -1.0, 1.0))(x, t), x)
    value, through = value_and_grad(lambda x: DPS(energy, Clip(linear, -1.0, 1.0, straight_through=True))(x, t), x)
    saturated = (3 * x).clamp(-1, 1)
    torch.testing.assert_close(through, 3 * (saturated - 0.25))
    assert torch.equal(clipped != 0, (3 * x).abs() < 1)
    assert torch.equal(value, energy(saturated))


def test_straight_through_holds_in_forward_mode_too() -> None:
    x, t = torch.full((1, 2), 0.9), torch.ones(1)
    _, out = torch.func.jvp(lambda x: Clip(linear, -1.0, 1.0, straight_through=True)(x, t), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(out, torch.full((1, 2), 3.0))


@pytest.mark.parametrize("bound", [1.0, 2.5])
def test_a_dynamic_threshold_shrinks_what_is_out_of_range_and_leaves_the_rest(generator: torch.Generator, bound: float) -> None:
    x = torch.randn(4, 3, 16, 16, generator=generator) * torch.tensor([0.02, 0.1, 2.0, 9.0]).view(-1, 1, 1, 1)
    free, got = 3 * x, DynamicThreshold(linear, 0.9, bound)(x, torch.ones(4))
    assert (got.abs() <= bound + 1e-12).all()
    torch.testing.assert_close(got[:2], free[:2])
    for i in (2, 3):
        s = free[i].abs().flatten().sort().values[round(0.9 * (free[i].numel() - 1))]
        middle = free[i].abs() < 0.95 * s
        torch.testing.assert_close(got[i][middle], free[i][middle] * bound / s, rtol=5e-3, atol=0)
        assert 0.09 < (got[i].abs() > bound * (1 - 1e-9)).double().mean() < 0.11  # saturated: one in ten


def test_thresholds_out_of_range_are_refused() -> None:
    for settings in ({"quantile": 1.2}, {"quantile": 0.0}, {"bound": -1.0}):
        with pytest.raises(ValueError, match="quantile"):
            DynamicThreshold(linear, **settings)


def conditional(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
    """Rows are independent; c = None is unconditional, and so is c = 0."""
    shift = 0.0 if c is None else c["y"] if isinstance(c, dict) else c
    return x * t[:, None] + torch.as_tensor(shift) * x.sin()


@pytest.mark.parametrize("null", [None, torch.zeros(1, 3), torch.zeros_like], ids=["none", "row", "function"])
def test_classifier_free_guidance_extrapolates_from_null_to_condition(generator: torch.Generator, null: Context) -> None:
    x, c, t = *torch.randn(2, 5, 3, generator=generator), torch.linspace(0.1, 1, 5)
    without, with_c = conditional(x, t), conditional(x, t, c)
    for scale, want in {0.0: without, 1.0: with_c, 2.5: 2.5 * with_c - 1.5 * without}.items():
        torch.testing.assert_close(ClassifierFree(conditional, scale, null)(x, t, c), want)
    scales = torch.linspace(0, 3, 5)
    torch.testing.assert_close(
        ClassifierFree(conditional, scales, null)(x, t, c), without + scales[:, None] * (with_c - without)
    )


def test_a_dict_of_contexts_has_a_null_with_the_same_keys(generator: torch.Generator) -> None:
    x, y, t = *torch.randn(2, 5, 3, generator=generator), torch.linspace(0.1, 1, 5)
    got = ClassifierFree(conditional, 2.0, {"y": torch.zeros(1, 3)})(x, t, {"y": y})
    torch.testing.assert_close(got, 2 * conditional(x, t, y) - conditional(x, t))
    with pytest.raises(ValueError, match="same keys"):
        ClassifierFree(conditional, 2.0, {"z": torch.zeros(1, 3)})(x, t, {"y": y})


def test_both_contexts_share_one_call() -> None:
    sizes: list[int] = []

    def counting(x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        sizes.append(len(x))
        return x

    ClassifierFree(counting, 2.0, torch.zeros(1, 3))(torch.ones(5, 3), torch.ones(5), torch.ones(5, 3))
    assert sizes == [10]


def test_guidance_in_x0_is_guidance_in_the_noise(mixture: GaussianMixture, schedule: Schedule) -> None:
    """(1 + w) eps_c - w eps_null of the paper, with w = scale - 1."""
    t = torch.linspace(0.1, 0.9, 20)
    x = mixture.noised(schedule, t, torch.Generator().manual_seed(1))
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    denoiser = lambda x, t, c=None: mixture.denoise(schedule, x, t) * (1 if c is None else c)  # noqa: E731
    eps = lambda x0: (x - alpha * x0) / sigma  # noqa: E731
    c = torch.full((20, 1), 0.7)
    want = 3 * eps(denoiser(x, t, c)) - 2 * eps(denoiser(x, t))
    torch.testing.assert_close(eps(ClassifierFree(denoiser, 3.0)(x, t, c)), want, rtol=1e-8, atol=1e-8)

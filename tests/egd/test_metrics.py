"""Distances between samples against closed forms."""

import pytest
import torch

from egd.metrics import energy_distance, sliced_wasserstein


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_dimension_is_the_optimal_matching_of_sorted_points() -> None:
    x, y = torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([[0.0], [5.0], [2.0]])
    want = torch.tensor([0.0, 1.0, 2.0]).square().mean().sqrt()  # 0-0, 1-2, 3-5
    torch.testing.assert_close(sliced_wasserstein(x, y, 4, gen()), want)


def test_unequal_sizes_integrate_the_step_functions_exactly() -> None:
    x, y = torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [1.0], [4.0]])
    # [0, 1/3]: 0-0, [1/3, 1/2]: 0-1, [1/2, 2/3]: 3-1, [2/3, 1]: 3-4
    want = torch.tensor(0 / 3 + 1 / 6 + 4 / 6 + 1 / 3).sqrt()
    torch.testing.assert_close(sliced_wasserstein(x, y, 4, gen()), want)
    torch.testing.assert_close(sliced_wasserstein(y, x, 4, gen()), want)


def test_repeating_every_point_changes_nothing() -> None:
    x, y = torch.randn(50, 3), torch.randn(20, 3) + 1
    a, b = sliced_wasserstein(x, y, 16, gen()), sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1), 16, gen())
    torch.testing.assert_close(a, b)


def test_a_shift_of_m_is_m_over_root_d() -> None:
    """E_u <u, m>^2 = |m|^2 / d."""
    shift = torch.tensor([3.0, 0.0, 4.0])
    x = torch.randn(100, 3)
    got = sliced_wasserstein(x, x + shift, 20_000, gen())
    assert float(got) == pytest.approx(5 / 3**0.5, rel=0.01)


def test_gaussians_of_different_scale() -> None:
    """W_2 of N(0, a^2) and N(0, b^2) is |a - b| along every direction."""
    x, y = torch.randn(40_000, 2), 3 * torch.randn(30_000, 2)
    assert float(sliced_wasserstein(x, y, 32, gen())) == pytest.approx(2.0, abs=0.03)


def test_events_are_flattened_and_identical_sets_are_at_zero() -> None:
    x, y = torch.randn(30, 2, 3), torch.randn(30, 2, 3)
    a, b = sliced_wasserstein(x, y, 8, gen()), sliced_wasserstein(x.flatten(1), y.flatten(1), 8, gen())
    torch.testing.assert_close(a, b)
    assert float(sliced_wasserstein(x, x[torch.randperm(30)], 8, gen())) == 0.0


@pytest.mark.parametrize(("x", "y"), [((4, 2), (4, 3)), ((0, 2), (4, 2))], ids=["event shapes", "empty"])
def test_what_cannot_be_compared_is_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one event shape"):
        sliced_wasserstein(torch.zeros(x), torch.zeros(y), 4, gen())


def test_energy_distance_of_two_normals_is_the_known_one() -> None:
    """E|X - Y| of N(0, 1) and N(m, 1) is that of |N(m, 2)|: 2 phi(m / 2^.5) 2^.5 + m (2 Phi(m / 2^.5) - 1)."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 1, generator=g, dtype=torch.float64), torch.randn(3000, 1, generator=g, dtype=torch.float64)
    normal, m = torch.distributions.Normal(0.0, 1.0), torch.tensor(1.5, dtype=torch.float64)
    z = m / 2**0.5
    apart = 2 * 2**0.5 * normal.log_prob(z).exp() + m * (2 * normal.cdf(z) - 1)
    expected = 2 * apart - 4 / torch.pi**0.5
    assert energy_distance(x, y + m).item() == pytest.approx(expected.item(), abs=0.1)
    assert abs(energy_distance(x, y).item()) < 0.005
    assert energy_distance(x[:10], x[:10] + 5).item() > 5


def test_energy_distance_names_sets_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="two sets of two or more"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="event shape"):
        energy_distance(torch.zeros(3, 2), torch.zeros(3, 3))


def test_the_energy_distance_does_not_depend_on_where_the_points_lie() -> None:
    x = torch.randn(300, 2, dtype=torch.float32)
    y = x.flip(0) * 2 + 1
    near, far = energy_distance(x, y), energy_distance(x + 4096, y + 4096)  # 4096: what is added costs 0.0005
    torch.testing.assert_close(far, near, atol=2e-3, rtol=0)
    torch.testing.assert_close(near.double(), energy_distance(x.double(), y.double()), atol=1e-5, rtol=0)


def test_no_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="projections is 1 or more"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), 0, gen())

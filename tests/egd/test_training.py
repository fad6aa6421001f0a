from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from egd.checkpoint import group, load_checkpoint, prefixed, save_checkpoint
from egd.denoisers import NetworkDenoiser, Prediction
from egd.errors import UserError
from egd.files import write_atomic
from egd.mixtures import GaussianMixture, Quadratic
from egd.networks.mlp import NoiseMLP
from egd.schedules import EDM, VE, FlowMatching, VPCosine, VPLinear
from egd.training.learners import DenoiserLearner, Fit, moving_average
from egd.types import Schedule


def two() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]])
    return GaussianMixture(torch.tensor([0.3, 0.7]).log(), means, 0.05 * torch.eye(2).expand(2, 2, 2))


def trained(schedule: Schedule, steps: int, generator: torch.Generator, **settings: Any) -> tuple[DenoiserLearner, list[float]]:
    """A small network after ``steps`` on two Gaussians, and its losses."""
    data = two()
    fit = Fit(NoiseMLP(2, width=64, blocks=2, time=16), lr=3e-3, steps=steps, decay=True, ema=0.99)
    made = DenoiserLearner(fit, schedule, lambda n, g: (data.sample(n, g), None), batch=256, **settings)
    return made, [float(made.update(generator)["loss"]) for _ in range(steps)]


@pytest.mark.slow
def test_a_denoiser_learns_a_mixture(generator: torch.Generator) -> None:
    m, schedule = two(), VPLinear()
    made, losses = trained(schedule, 1500, generator)
    t = 0.05 + 0.9 * torch.rand(2000, generator=generator)
    x = m.noised(schedule, t, generator)
    with torch.no_grad():
        got = NetworkDenoiser(made.fit.model, schedule)(x, t)
    want = m.denoise(schedule, x, t)
    noise = ((x - schedule.alpha(t)[:, None] * got) - (x - schedule.alpha(t)[:, None] * want)) / schedule.sigma(t)[:, None]
    assert losses[0] == pytest.approx(1, abs=0.2)  # the fresh network predicts zero
    assert noise.square().mean().sqrt() < 0.1
    near = t < 0.5
    assert (got - want)[near].square().mean().sqrt() < 0.1 * want.square().mean().sqrt()


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (VPCosine(), "v_prediction"),
        (VPLinear(), "sample"),
        (FlowMatching(), "flow"),
        pytest.param(EDM(sigma_max=20.0), "v_prediction", marks=pytest.mark.slow),
        pytest.param(VE(), "v_prediction", marks=pytest.mark.slow),
    ],
    ids=["cosine-v", "linear-sample", "flow", "edm-v", "ve-v"],
)
def test_every_prediction_is_learnt(schedule: Schedule, kind: Prediction, generator: torch.Generator) -> None:
    made, _ = trained(schedule, 600, generator, prediction=kind)
    t = 0.01 + 0.99 * torch.rand(4000, generator=generator)
    data = two()
    x = data.noised(schedule, t, generator)
    with torch.no_grad():
        got = NetworkDenoiser(made.fit.model, schedule, kind)(x, t)
    want = data.denoise(schedule, x, t)
    assert (got - want).square().mean().sqrt() < 0.15 * data.sample(4000, generator).square().mean().sqrt()


@pytest.mark.slow
def test_a_weighted_denoiser_is_that_of_the_weighted_data(generator: torch.Generator) -> None:
    schedule, energy = VPLinear(), Quadratic(torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    weights = lambda x0, c: torch.exp(-energy(x0))  # noqa: E731
    made, _ = trained(schedule, 1500, generator, weights=weights)
    target = two().tilted(energy, 1.0)
    t = 0.3 + 0.7 * torch.rand(4000, generator=generator)
    x = target.noised(schedule, t, generator)
    with torch.no_grad():
        got = NetworkDenoiser(made.fit.model, schedule)(x, t)
    eps = lambda d: (x - schedule.alpha(t)[:, None] * d) / schedule.sigma(t)[:, None]  # noqa: E731
    errors = [(eps(got) - eps(m.denoise(schedule, x, t))).square().mean().sqrt() for m in (target, two())]
    assert errors[0] < 0.05 and errors[1] > 0.1


def learner(ema: float = 0.9, decay: bool = True, clip: float = 0.5) -> DenoiserLearner:
    torch.manual_seed(1)
    m = GaussianMixture.random(2, 2, seed=0)
    fit = Fit(NoiseMLP(2, width=16, blocks=1), lr=1e-2, steps=12, decay=decay, ema=ema, clip=clip)
    return DenoiserLearner(fit, VPLinear(), lambda n, g: (m.sample(n, g), None), batch=8)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.0}, {"decay": False}, {"clip": 0.0}], ids=str)
def test_a_loaded_fit_goes_on_bit_for_bit(settings: dict, tmp_path: Path) -> None:
    whole, g = learner(**settings), torch.Generator().manual_seed(5)
    for _ in range(12):
        whole.update(g)
    half, g = learner(**settings), torch.Generator().manual_seed(5)
    for _ in range(5):
        half.update(g)
    save_checkpoint(tmp_path / "half.safetensors", half.state(), {})
    torch.manual_seed(99)
    again = learner(**settings)
    with torch.no_grad():
        for p in again.fit.module.parameters():
            p.add_(1)
    again.load(load_checkpoint(tmp_path / "half.safetensors")[0])
    for _ in range(7):
        again.update(g)
    want, got = whole.state(), again.state()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_the_learning_rate_decays_as_a_cosine_to_zero() -> None:
    one, g = learner(), torch.Generator().manual_seed(0)
    rates = []
    for _ in range(13):
        one.update(g)
        rates.append(one.fit.optimiser.param_groups[0]["lr"])
    torch.testing.assert_close(torch.tensor(rates), 1e-2 * 0.5 * (1 + torch.cos(torch.pi * torch.arange(13) / 12)))


def test_the_decay_begins_anew_in_every_cycle() -> None:
    one, g = learner(), torch.Generator().manual_seed(0)
    one.fit.cycles = 2  # of 12 steps
    rates = []
    for _ in range(13):
        one.update(g)
        rates.append(one.fit.optimiser.param_groups[0]["lr"])
    cycle = 1e-2 * 0.5 * (1 + torch.cos(torch.pi * torch.arange(6) / 6))
    torch.testing.assert_close(torch.tensor(rates), torch.cat([cycle, cycle, torch.zeros(1)]))


def test_gradients_are_clipped_to_their_norm() -> None:
    one = learner(clip=0.01)
    one.update(torch.Generator().manual_seed(0))
    total = torch.stack([p.grad.square().sum() for p in one.fit.module.parameters()]).sum().sqrt()
    assert float(total) == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_the_weights_exponentially() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    average = moving_average(module, 0.75)
    for weight in (4.0, 8.0, 0.0):
        torch.nn.init.constant_(module.weight, weight)
        average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(0.75 * (0.75 * 4 + 0.25 * 8))


def test_the_model_to_use_is_the_average_where_there_is_one() -> None:
    plain, averaged = learner(ema=0.0).fit, learner().fit
    assert plain.model is plain.module
    assert averaged.model is averaged.average.module


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "transposed": base.T,
        "shared": base,
        "scalar": torch.tensor(3),
        "bytes": torch.Generator().get_state(),
        "half": base.half(),
        "grad": base.clone().requires_grad_(),
    }
    meta = {"step": 3, "notes": [{"score": 0.1, "name": "ä"}], "none": None}
    path = tmp_path / "deep" / "er" / "a.safetensors"
    save_checkpoint(path, tensors, meta)
    got, got_meta = load_checkpoint(path)
    assert got_meta == meta
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensors[name]) and got[name].dtype == tensors[name].dtype for name in tensors)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "empty", "missing", "foreign"])
def test_what_is_no_checkpoint_is_refused_and_never_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"weight": torch.zeros(2), "bomb": Bomb()}, path)
    elif kind == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    elif kind != "missing":
        path.write_text("not a checkpoint" * (kind == "text"))
    with pytest.raises(UserError, match=r"a\.safetensors is not a checkpoint of egd .*remove it and run again"):
        load_checkpoint(path)
    assert not Path("exploded").exists()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, b"old")

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_groups_come_out_as_they_went_in() -> None:
    tensors = {"a": torch.zeros(1), "a.b": torch.ones(1)}
    both = {**prefixed("one", tensors), **prefixed("one_more", {"c": torch.ones(2)})}
    assert group("one", both).keys() == tensors.keys()
    assert group("one_more", both).keys() == {"c"}

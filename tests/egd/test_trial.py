"""Components of a user's own are tried on a few rows before anything is trained: what breaks a contract is named."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from egd.bench.estimators import check
from egd.config.catalogue import make_schedule
from egd.config.components import Spec
from egd.config.trial import Trial
from egd.errors import UserError
from egd.experiments.toy2d.config import Toy2dConfig
from egd.experiments.toy2d.model import check_components
from egd.samplers.choice import choose
from egd.schedules import FlowMatching, VPLinear

SOURCE = """
import torch
from egd.posteriors import IsotropicGaussian

class Good:
    def __init__(self, energy, denoiser, beta=1.0): self.energy, self.denoiser, self.beta = energy, denoiser, beta
    def __call__(self, x, t, c=None): return self.beta * self.energy(self.denoiser(x, t, c), c)

class Column(Good):
    def __call__(self, x, t, c=None): return super().__call__(x, t, c)[:, None]

class Axis(Good):
    def __call__(self, x, t, c=None): return x.square().sum(0)

class Detached(Good):
    def __call__(self, x, t, c=None): return super().__call__(x.detach(), t, c)

class Flat(Good):
    def __call__(self, x, t, c=None): return x.round().flatten(1).sum(1)

class Infinite(Good):
    def __call__(self, x, t, c=None): return super().__call__(x, t, c) / 0

class Wants(Good):
    def __call__(self, x, t, c=None): return self.energy.something_else(x)

class Raises(Good):
    def __call__(self, x, t, c=None):
        if x.abs().max() > 0.1: raise RuntimeError("beyond 0.1")
        return super().__call__(x, t, c)

class Lacks(Good):
    def __call__(self, x, t, c=None): return self.nothing

class Few(Good):
    def __call__(self, x, t, c=None): return super().__call__(x, t, c) @ torch.ones(7)

class Unmade(Good):
    def __init__(self, energy): raise LookupError("no weights")

class Raising:
    def loss(self, network, x0, x, t, c, generator): return {}[3]

class Loss:
    def __init__(self, energy): self.energy = energy
    def loss(self, network, x0, x, t, c, generator): return (network(x, t, c) - self.energy(x0, c)).square(), {}

class Schedule:
    def __init__(self, size: int = 1): self.size = size
    def alpha(self, t): return (1 - t).expand(self.size, -1)[0] if self.size else t.sum()
    def sigma(self, t): return (t - 0.2 * (self.size == 3)).sqrt()

def raising(denoiser): return lambda x, t, c=None: {}["x"]

def posterior(denoiser): return lambda x, t, c=None: IsotropicGaussian(denoiser(x, t, c), t[:, None])

def sampler(denoiser, schedule, x, times, c=None, *, generator=None): return denoiser(x, times[:1].expand(len(x)), c)

def one_row(denoiser, schedule, x, times, c=None, *, generator=None): return sampler(denoiser, schedule, x, times, c)[:1]

def lost(denoiser, schedule, x, times, c=None, *, generator=None): return sampler(denoiser, schedule, x, times, c) / 0

def wrapper(denoiser): return lambda x, t, c=None: denoiser(x, t, c).clamp(-1, 1)

def flat(denoiser): return lambda x, t, c=None: denoiser(x, t, c).flatten()

def detached(denoiser, low): return lambda x, t, c=None: denoiser(x, t, c).detach().clamp(low)

def rule(omega): return lambda score, gradient, t: gradient.sum(1)
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(SOURCE)
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize("event", [(1,), (2,), (3,), (3, 4, 4)])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Column", "Column .*one number a row"),
        ("Axis", "Axis .*one number a row"),
        ("Detached", "Detached .*no gradient by x_t"),
        ("Flat", "Flat .*gradient of zero at every time"),
        ("Infinite", "Infinite .*not finite"),
        ("Loss", "Loss .*no single number"),
        ("Raises", r"mine.py:Raises fails on \d rows of made-up data.*RuntimeError: beyond 0.1 \(mine.py, line 29\)"),
        ("Lacks", r"mine.py:Lacks fails on.*AttributeError: 'Lacks' .* 'nothing' \(mine.py, line 33\); correct it"),
        ("Few", r"mine.py:Few fails on.*RuntimeError: .*\(mine.py, line"),
        ("Unmade", r"mine.py:Unmade fails when it is made: LookupError: no weights \(mine.py, line"),
        ("Raising", r"mine.py:Raising fails on.*KeyError: 3 \(mine.py, line"),
    ],
)
def test_an_energy_that_breaks_its_contract_is_named(mine: str, name: str, words: str, event: tuple[int, ...]) -> None:
    before = torch.random.get_rng_state()
    for schedule in (VPLinear(), FlowMatching()):
        with pytest.raises(UserError, match=words) as error:
            Trial(event, schedule, torch.zeros(2, 5)).energy(Spec(f"{mine}:{name}", {}), "guidance.energy")
        assert error.value.key == "guidance.energy"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_sound_or_asks_for_more_than_the_stand_ins_passes(mine: str) -> None:
    trial = Trial((2,), VPLinear())
    for name in ("Good", "Wants"):
        trial.energy(Spec(f"{mine}:{name}", {}), "k")
    trial.energy(Spec("sum", {"energies": [f"{mine}:Good", "support_samples", "second_order"]}), "k")
    with pytest.raises(UserError, match="one number a row"):  # a nested one is tried too
        trial.energy(Spec("sum", {"energies": ["dps", f"{mine}:Column"]}), "k")


def test_posteriors_and_rules_are_tried_too(mine: str) -> None:
    trial = Trial((2,), VPLinear())
    with pytest.raises(UserError, match=r"posterior.*gave the shape \(3, 3\)"):
        trial.posterior(Spec(f"{mine}:posterior", {}), "posterior")
    with pytest.raises(UserError, match=r"rule.*gave the shape"):
        trial.rule(Spec(f"{mine}:rule", {}), "rule")


def test_an_error_that_may_be_due_to_the_stand_ins_is_left_to_the_run(mine: str) -> None:
    """Where not even the shape is the run's own, as before images are read, only a broken contract is sure."""
    trial = Trial((1, 8, 8), VPLinear(), runs_own=False)
    for name in ("Raises", "Few", "Wants"):
        trial.energy(Spec(f"{mine}:{name}", {}), "k")
    with pytest.raises(UserError, match="one number a row"):
        trial.energy(Spec(f"{mine}:Column", {}), "k")


def test_any_error_of_any_component_is_named(mine: str) -> None:
    trial, spec = Trial((2,), VPLinear()), Spec(f"{mine}:raising", {})
    tries = (trial.posterior, partial(trial.wrapper, parts={"low": -1.0, "high": 1.0}))
    for tried in tries:
        with pytest.raises(UserError, match=r"mine.py:raising fails on .*KeyError: 'x' \(mine.py, line \d+\)"):
            tried(spec, key="k")
    for size, words in {1: None, 0: "gave the shape", 3: "sigma of Schedule .* not finite", -7: "fails on the times"}.items():
        with pytest.raises(UserError, match=words) if words else nullcontext():
            make_schedule(Spec(f"{mine}:Schedule", {"size": size}))


def test_samplers_and_wrappers_are_tried_too(mine: str) -> None:
    trial = Trial((2,), FlowMatching(), torch.zeros(2, 1))
    for name, words in {"sampler": None, "one_row": r"shape \(1, 2\)", "lost": "not finite"}.items():
        spec = Spec(f"{mine}:{name}", {})
        with pytest.raises(UserError, match=f"{name} .*{words}") if words else nullcontext():
            trial.sampler(spec, choose(spec, "sampler"), "sampler")
    for name, words in {"wrapper": None, "flat": r"shape \(6,\)", "detached": "no gradient by x_t"}.items():
        with pytest.raises(UserError, match=words) if words else nullcontext():
            trial.wrapper(Spec(f"{mine}:{name}", {}), {"low": -1.0, "high": 1.0}, "clip_x0")


def test_a_recipe_is_refused_before_anything_is_trained(mine: str) -> None:
    config = Toy2dConfig.model_validate({"experiment": "toy2d", "task": "8gaussians", "estimators": {"mine": f"{mine}:Column"}})
    with pytest.raises(UserError, match="one number a row") as error:
        check_components(config)
    assert error.value.key == "estimators.mine"
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"name": f"{mine}:one_row"})})
    with pytest.raises(UserError, match="one_row") as error:
        check_components(config)
    assert error.value.key == "sampler.name"


def test_the_benchmark_tries_a_class_of_ones_own_first(mine: str) -> None:
    with pytest.raises(UserError, match="one number a row") as error:
        check(f"{mine}:Column")
    assert error.value.key == "--mine"

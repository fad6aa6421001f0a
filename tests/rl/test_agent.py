"""AEPO assembled: what its parts hand to one another."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from egd import GaussianMixture, VPLinear, time_grid
from egd.errors import UserError
from egd.tensors import value_and_grad
from egd.training.learners import EnergyLearner
from rl.agents.aepo import AEPO
from rl.config import GuidanceConfig, GuidedConfig
from rl.data.episodes import Episodes, to_offline_data
from rl.data.transitions import OfflineData
from rl.parts.action_sampling import ActionSampler, GuidedSampling
from rl.parts.energies import TrainedEnergy, energy_components
from rl.runs.recipe import typed

LITERAL = {"energy": "analytic", "rule": "rescaled", "posterior": "posterior1", "clip_x0": False}


def data() -> OfflineData:
    rng = np.random.default_rng(0)
    lengths = [60, 60]
    return to_offline_data(
        Episodes(
            [rng.normal(size=(n + 1, 3)).astype(np.float32) for n in lengths],
            [rng.uniform(-1, 1, size=(n, 2)).astype(np.float32) for n in lengths],
            [rng.normal(size=n).astype(np.float32) for n in lengths],
            [np.zeros(n, dtype=bool) for n in lengths],
        ),
        0.0,
    )


def agent(**over: Any) -> AEPO:
    config = {
        "experiment": "offline_rl",
        "task": "hopper-medium",
        "denoiser": {"width": 16, "blocks": 2, "steps": 5, "batch": 16},
        "critic": {"width": 16, "layers": 2, "steps": 5, "batch": 16},
        "energy_network": {"width": 16, "layers": 2, "steps": 5, "batch": 16},
        "calibration": {"samples": 64, "grid": 4},
        "sampler": {"steps": 4},
    }
    made = AEPO(GuidedConfig.model_validate(config | over), data(), torch.device("cpu"))
    for phase in made.phases():
        generator = torch.Generator().manual_seed(1)
        for _ in range(phase.steps):
            phase.learner.update(generator)
    return made


def act(made: AEPO, name: str, omegas: list[float], states: torch.Tensor, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return made.policy(name, omegas, generator)(states, torch.zeros(len(states), dtype=torch.long))


def test_the_energy_is_minus_the_advantage_and_guides_like_minus_q() -> None:
    made = agent()
    batch = made.data.sample(20, torch.Generator().manual_seed(0))
    values, grad = value_and_grad(lambda a: made.calibration.energy()(a, batch.state), batch.action)
    q, q_slope = value_and_grad(lambda a: made.critic.q(batch.state, a), batch.action)
    torch.testing.assert_close(values, made.critic.v(batch.state).detach() - q)
    torch.testing.assert_close(grad, -q_slope)
    scaled = made.calibration.energy("advantage_std")(batch.action, batch.state).detach()
    torch.testing.assert_close(scaled * made.calibration.advantage_std, values)


def test_policies_that_differ_only_in_rule_or_scale_share_a_network() -> None:
    variants = {
        "plain": LITERAL | {"rule": "additive", "omegas": [0.5, 2]},
        "steep": LITERAL | {"beta": 5},
        "closed": {"energy": "dps"},
    }
    made = agent(guidance=LITERAL, variants=variants)
    assert set(made.guidance.energies) == {"guided", "steep"}
    generator = torch.Generator()
    assert made.guidance.policy("plain").timed_energy(generator) is made.guidance.policy("guided").timed_energy(generator)
    assert [p.name for p in made.phases()] == ["denoiser", "critic", "calibration", "energy_guided", "energy_steep"]


@pytest.mark.parametrize("energy", ["dps", "first_order", "analytic"])
@pytest.mark.parametrize("rule", ["additive", "rescaled"])
def test_guidance_fades_into_the_behaviour_policy(energy: str, rule: str) -> None:
    made = agent(guidance={"energy": energy, "rule": rule, "clip_x0": False})  # a clipped x_0 has no gradient
    states = made.data.transitions.state[:10]
    behaviour = act(made, "behaviour", [], states)
    torch.testing.assert_close(act(made, "guided", [1e-9], states), behaviour, atol=1e-5, rtol=0)
    assert (act(made, "guided", [5.0], states) - behaviour).abs().max() > 1e-3


def test_scale_zero_never_asks_the_energy() -> None:
    made = agent(guidance={"energy": "dps", "omega": 0, "candidates": 3})
    asked = []
    plain = made.critic.q
    made.critic.q = lambda s, a: asked.append(len(a)) or plain(s, a)  # type: ignore[method-assign, func-returns-value]
    states = made.data.transitions.state[:4]
    act(made, "behaviour", [], states)
    assert asked == []
    act(made, "guided", [0.0], states)
    assert asked == [12]  # once, to choose among the candidates: never along the sampler


def test_candidates_are_chosen_by_the_energy() -> None:
    made = agent(guidance={"omega": 0, "candidates": 64, "clip_x0": False})
    states = made.data.transitions.state[:8]
    chosen = made.critic.q(states, act(made, "guided", [0.0], states)).detach()
    drawn = torch.stack([made.critic.q(states, act(made, "behaviour", [], states, seed)).detach() for seed in range(64)])
    assert (chosen > drawn.quantile(0.9, dim=0)).all()


@pytest.mark.parametrize("selection", ["softmax", "smc"])
@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_selections_lean_towards_low_energy_and_differ_from_the_best(selection: str, omega: float) -> None:
    settings = {"omega": omega, "candidates": 32, "energy": "dps", "energy_scale": "advantage_std", "beta": 5.0}
    made = agent(guidance={**settings, "selection": selection})
    states = made.data.transitions.state[:64]
    q = lambda name: made.critic.q(states, act(made, name, [omega], states)).detach().mean()  # noqa: E731
    best = agent(guidance={**settings, "omega": 0.0})
    greedy = best.critic.q(states, act(best, "guided", [0.0], states)).detach().mean()
    assert q("behaviour") < q("guided") < greedy


def test_actions_stay_within_the_range_of_the_data() -> None:
    made = agent(guidance={"energy": "dps", "omega": 50})
    actions = act(made, "guided", [50.0], made.data.transitions.state[:20])
    assert (actions <= made.data.action_high + 1e-6).all()
    assert (actions >= made.data.action_low - 1e-6).all()


def test_joint_training_updates_every_part_and_calibrates() -> None:
    made = agent(training="joint", guidance=LITERAL, calibration={"samples": 64, "grid": 4, "every": 2})
    assert [p.name for p in made.phases()] == ["joint"]
    assert made.behaviour.fit.step == made.critic.fit.step == made.guidance.energies["guided"].fit.step == 5
    assert made.calibration.version == 4  # at steps 0, 2 and 4, and once after the last


def test_energy_networks_learn_until_joint_training_ends() -> None:
    network = {"width": 16, "layers": 2, "steps": 2, "batch": 16}
    made = agent(training="joint", guidance=LITERAL, energy_network=network)
    fit = made.guidance.energies["guided"].fit
    assert fit.step == 5 > network["steps"]
    assert fit.optimiser.param_groups[0]["lr"] == pytest.approx(3e-4 * 0.5 * (1 + np.cos(np.pi * 4 / 5)))


def test_the_diagnostics_set_targets_beside_energies_in_the_same_unit() -> None:
    """An MSE network's targets are beta times the energies, whatever the unit."""
    for scale in ("raw", "advantage_std"):
        made = agent(guidance={"energy": "mse", "beta": 2, "energy_scale": scale})
        found = made.diagnostics(torch.Generator().manual_seed(0))["targets"]["guided"]
        assert found["beta_times_advantage_std"] == pytest.approx(found["target_std_middle"], rel=1e-4)


def test_the_diagnostics_count_what_leaves_the_range_and_do_not_warn_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent(guidance={"energy": "support_samples"})
    monkeypatch.setattr(type(made.behaviour), "denoiser", lambda *_: lambda x, t, c=None: 1e6 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made.diagnostics(torch.Generator().manual_seed(0))
    assert found["behaviour"]["outside_range_share"] > 0.9


def test_evaluations_in_mid_training_belong_to_what_the_headline_depends_on() -> None:
    for guidance, phase in (("dps", "critic"), ("mse", "energy_guided")):
        made = agent(guidance={"energy": guidance}, variants={"other": {"energy": "exp_mse"}})
        assert made.evaluation_phase(made.phases()).name == phase
    joint = agent(training="joint", guidance=LITERAL)
    assert joint.evaluation_phase(joint.phases()).name == "joint"


TRAINED = {
    "cep": {"name": "cep", "samples": 4},
    "exp_mse": "exp_mse",
    "a closed form": {"name": "analytic", "target": "dps"},
    "a closed form that draws": {"name": "analytic", "target": {"name": "support_samples", "samples": 4}},
}


def made_again(made: AEPO) -> EnergyLearner:
    """The energy network's learner before its first step."""
    return TrainedEnergy(made.context, "guided", made.config, made.calibration, made.support).learner


@pytest.mark.parametrize("energy", TRAINED.values(), ids=TRAINED.keys())
def test_any_objective_trains_a_network_and_goes_on_bit_for_bit(energy: Any) -> None:
    made = agent(guidance={"energy": energy})
    whole = made.guidance.energies["guided"].learner
    assert whole.fit.step == 5
    half, again = (made_again(made) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        half.update(generator)
    restored = torch.Generator()
    restored.set_state(generator.get_state())
    again.load(half.state())
    for _ in range(3):
        again.update(restored)
    assert again.state().keys() == whole.state().keys()
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in whole.state().items())
    assert all(bool(tensor.isfinite().all()) for tensor in whole.state().values())


def test_the_network_of_a_contrast_starts_at_the_scale_of_its_energies() -> None:
    made = agent(guidance={"energy": "cep", "beta": 4})
    batch = made.data.sample(512, torch.Generator().manual_seed(0))
    spread = 4 * float(made.calibration.energy()(batch.action, batch.state).detach().std())
    assert float(made.guidance.energies["guided"].learner.scale) == pytest.approx(spread, rel=0.6)


def test_a_density_ratio_has_no_wanted_samples_here() -> None:
    with pytest.raises(UserError, match="'ratio' needs 'wanted'"):
        AEPO.check(GuidedConfig.model_validate({"experiment": "e", "task": "t", "guidance": {"energy": "ratio"}}))


def test_straight_through_changes_the_derivative_of_a_clipped_denoiser_and_no_value() -> None:
    made = agent()
    x, t, c = torch.full((6, 2), 3.0), torch.full((6,), 0.3), made.data.sample(6, torch.Generator().manual_seed(0)).state
    (plain, no_push), (through, push) = (value_and_grad(lambda x, d=d: d(x, t, c).sum(1), x) for d in denoisers(made))
    torch.testing.assert_close(plain, through)
    saturated = (no_push == 0).all(1)
    assert saturated.any()
    assert (push[saturated] != 0).any(1).all()


def denoisers(made: AEPO) -> list[Any]:
    """What an energy is handed without and with ``straight_through``."""
    guidance = made.config.guidance
    both = [guidance.model_copy(update={"straight_through": through}) for through in (False, True)]
    return [energy_components(g, made.calibration, torch.Generator())["denoiser"] for g in both]


def test_a_rule_that_cannot_be_built_is_refused_before_training() -> None:
    rule = {"name": "interval", "rule": {"name": "interval", "low": 0.9, "high": 0.1}}
    with pytest.raises(UserError, match="low < high") as error:
        AEPO.check(GuidedConfig.model_validate({"experiment": "e", "task": "t", "guidance": {"rule": rule}}))
    assert error.value.key == "guidance.rule"


def test_the_temperature_is_that_of_a_gaussians_spread() -> None:
    schedule = VPLinear()
    exact = GaussianMixture(torch.zeros(1), torch.tensor([[0.5, -1.0]]), torch.diag(torch.tensor([0.04, 0.25]))[None])
    sampler = ActionSampler(schedule, time_grid(schedule, 100, spacing="log_snr"), (2,))
    states = torch.zeros(20_000, 1)
    for temperature in (0.0, 0.3, 1.0):
        generator = torch.Generator().manual_seed(0)
        sampling = GuidedSampling(sampler, lambda x, t, c: exact.denoise(schedule, x, t), generator, temperature=temperature)
        drawn = sampling(states)
        torch.testing.assert_close(drawn.mean(0), torch.tensor([0.5, -1.0]), atol=0.02, rtol=0)
        torch.testing.assert_close(drawn.std(0), temperature * torch.tensor([0.2, 0.5]), atol=0.01, rtol=0)


def test_a_variant_set_to_null_is_left_out() -> None:
    variants = {"dps": None, "cold": {"temperature": 0.5}}
    config = typed({"experiment": "offline_rl", "agent": "aepo", "task": "hopper-medium", "variants": variants}, "a recipe")
    assert isinstance(config, GuidedConfig) and set(config.guidances) == {"guided", "cold"}


def test_a_temperature_makes_a_policy_of_its_own_also_unguided() -> None:
    variants = {"cold": {"energy": "dps", "temperature": 0.0}, "mean": {"omega": 0, "temperature": 0.0}}
    made = agent(variants=variants)
    states = made.data.transitions.state[:9]
    assert {"cold", "mean"} <= set(made.scales()) and made.guidance.own("mean") == "mean@0"
    for name, scale in (("cold", 1.0), ("mean", 0.0)):
        assert torch.equal(act(made, name, [scale], states, seed=1), act(made, name, [scale], states, seed=2))
    assert not torch.equal(act(made, "cold", [1.0], states), act(made, "mean", [0.0], states))
    with pytest.raises(ValueError, match=r"temperature 0\.5 must be 1"):
        GuidanceConfig(selection="smc", temperature=0.5)

"""Diffuser: windows of the data, what a plan is worth, and acting by plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from egd.energies import DPS
from egd.errors import UserError
from egd.tensors import value_and_grad
from egd.training.learners import DenoiserLearner, EnergyLearner
from rl.agents.aepo import AEPO
from rl.agents.diffuser import Diffuser, DiffuserConfig
from rl.data.episodes import Episodes, to_offline_data
from rl.data.trajectories import Windows, consecutive
from rl.data.transitions import OfflineData
from rl.deploy.module import PolicyModule
from rl.parts.action_sampling import GivenNoise
from rl.parts.trajectories import Reward

S, A, H = 3, 2, 6
TINY = {
    "experiment": "offline_rl",
    "task": "hopper-medium",
    "plan": {"horizon": H},
    "denoiser": {"width": 8, "blocks": 2, "steps": 5, "batch": 16},
    "reward": {"width": 16, "layers": 2, "steps": 5, "batch": 16},
    "critic": {"width": 16, "layers": 2, "steps": 5, "batch": 16},
    "energy_network": {"width": 8, "layers": 2, "steps": 5, "batch": 16},
    "calibration": {"samples": 64, "grid": 4},
    "sampler": {"steps": 4, "spacing": "time"},
}


def walks(*lengths: int, terminal: int | None = None, cut: bool = False) -> OfflineData:
    """A random walk for each of these lengths, or one that is ``cut`` into them; episode ``terminal`` ends for good."""
    rng = np.random.default_rng(0)
    actions = [rng.uniform(-1, 1, size=(n, A)).astype(np.float32) for n in lengths]
    observations: list[Any] = []
    for action in actions:
        start = observations[-1][-1] if cut and observations else rng.normal(size=S).astype(np.float32)
        steps = np.concatenate([action, action[:, :1]], 1)
        observations.append(np.concatenate([start[None], start + np.cumsum(steps, 0)]).astype(np.float32))
    ends = [np.zeros(n, dtype=bool) for n in lengths]
    if terminal is not None:
        ends[terminal][-1] = True
    rewards = [o[:-1, 0] + a[:, 1] for o, a in zip(observations, actions, strict=True)]
    return to_offline_data(Episodes(observations, actions, rewards, ends), 0.0)


def agent(kind: Any = Diffuser, data: OfflineData | None = None, **over: Any) -> Any:
    known = kind.Config.model_fields
    config = kind.Config.model_validate({key: value for key, value in (TINY | over).items() if key in known})
    kind.check(config)
    made = kind(config, walks(60, 60) if data is None else data, torch.device("cpu"))
    for phase in made.phases():
        generator = torch.Generator().manual_seed(1)
        for _ in range(phase.steps):
            phase.learner.update(generator)
    return made


def plans(made: Diffuser, name: str, omegas: list[float], states: torch.Tensor, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return made.planner(name, omegas, generator)(states, torch.zeros(len(states), dtype=torch.long)).detach()


# -- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_what_followed_on_one_another() -> None:
    data = walks(10, 4, 7)
    found, first = Windows(data, 5).sample(300, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, 0, :S], first)
    states, actions = (found[..., :S] * data.state_std + data.state_mean), found[..., S:]
    steps = torch.cat([actions, actions[..., :1]], -1)
    torch.testing.assert_close(states[:, 1:] - states[:, :-1], steps[:, :-1], atol=1e-5, rtol=0)


def test_a_window_ends_where_an_episode_does_unless_the_walk_goes_on() -> None:
    starts = lambda data: Windows(data, 5).starts.tolist()  # noqa: E731
    assert starts(walks(10, 4, 7)) == [0, 1, 2, 3, 4, 5, 14, 15, 16]
    assert starts(walks(10, 4, 7, cut=True)) == list(range(17))
    assert starts(walks(10, 4, 7, cut=True, terminal=1)) == [*range(10), 14, 15, 16]
    assert consecutive(walks(3, 2).transitions).tolist() == [True, True, False, True, False]


def test_all_windows_are_drawn() -> None:
    windows = Windows(walks(10, 4, 7), 5)
    rows = windows.rows(500, torch.Generator().manual_seed(0))
    assert set(rows[:, 0].tolist()) == set(windows.starts.tolist())
    assert torch.equal(rows, rows[:, :1] + torch.arange(5))


def test_a_horizon_that_no_episode_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"no 11 transitions .* at most 10") as error:
        Windows(walks(10, 4), 11)
    assert error.value.key == "plan.horizon"


# -- what a plan is worth ----------------------------------------------------------------------------------------------


def test_a_plan_is_worth_its_rewards_and_the_value_of_its_last_state() -> None:
    made = agent(critic=TINY["critic"] | {"gamma": 0.5})
    made.calibration.value.reward = lambda s, a: (s[:, 0] + 10 * a[:, 1])[None]
    made.critic.v = lambda s: 100 * s[:, 1]  # type: ignore[method-assign]
    plan, state = made.behaviour.sample(4, torch.Generator().manual_seed(0))
    s, a = plan[..., :S], plan[..., S:]
    want = sum(0.5**t * (s[:, t, 0] + 10 * a[:, t, 1]) for t in range(H - 1)) + 0.5 ** (H - 1) * 100 * s[:, -1, 1]
    torch.testing.assert_close(made.calibration.value.q(state, plan), want)
    torch.testing.assert_close(made.calibration.energy()(plan, state), 100 * state[:, 1] - want)


def test_the_reward_is_learned() -> None:
    data, made = walks(60, 60), agent(reward={"width": 32, "layers": 2, "steps": 400, "batch": 64, "lr": 3e-3})
    rows = data.transitions
    error = made.reward.fit.module(rows.state, rows.action)[0] - rows.reward
    assert error.square().mean() < 0.1 * rows.reward.var()


def test_the_critic_is_that_of_the_methods_that_guide_actions() -> None:
    made = {kind: {phase.name: phase for phase in agent(kind).phases()} for kind in (Diffuser, AEPO)}
    critics = [phases["critic"] for phases in made.values()]
    assert critics[0].cache_key == critics[1].cache_key
    assert all(torch.equal(critics[0].learner.state()[k], v) for k, v in critics[1].learner.state().items())
    assert made[Diffuser]["denoiser"].cache_key != made[AEPO]["denoiser"].cache_key


def test_what_a_phase_learned_depends_on_the_horizon_and_the_reward() -> None:
    made = lambda **over: {p.name: p.cache_key for p in agent(**over).phases()}  # noqa: E731
    plain, longer = made(), made(plan={"horizon": 7})
    other = made(reward=TINY["reward"] | {"width": 8})
    assert [name for name in plain if plain[name] != longer[name]] == ["denoiser", "calibration", "energy_guided"]
    assert [name for name in plain if plain[name] != other[name]] == ["reward", "calibration", "energy_guided"]


# -- acting ------------------------------------------------------------------------------------------------------------

ENERGIES: dict[str, Any] = {
    "mse": "mse",
    "cep": {"name": "cep", "samples": 4},
    "dps": "dps",
    "first_order": "first_order",
    "support_samples": {"name": "support_samples", "samples": 2},
}


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES.keys())
def test_plans_start_where_one_is_whatever_guides_them(energy: Any) -> None:
    made = agent(guidance={"energy": energy, "rule": "rescaled", "clip_x0": False})
    states = 3 * made.data.transitions.state[:9]  # some out of the data's range
    for name, omegas in (("behaviour", []), ("guided", [1.0]), ("guided", [30.0])):
        found = plans(made, name, omegas, states)
        assert found.shape == (9, H, S + A)
        torch.testing.assert_close(found[:, 0, :S], states, atol=0.1, rtol=0)  # the sampler stops at t = 0.001
    behaviour = plans(made, "behaviour", [], states)
    if energy != ENERGIES["support_samples"]:  # which draws random numbers of its own first
        torch.testing.assert_close(plans(made, "guided", [1e-9], states), behaviour, atol=1e-4, rtol=0)
    assert (plans(made, "guided", [30.0], states) - behaviour).abs().max() > 1e-3


def test_particles_of_plans_need_no_guidance() -> None:
    made = agent(guidance={"energy": "dps", "omega": 0, "candidates": 4, "selection": "smc"})
    states = made.data.transitions.state[:5]
    found = plans(made, "guided", [0.0], states)
    assert found.shape == (5, H, S + A) and bool(found.isfinite().all())


def test_a_policy_takes_the_first_action_of_its_plan() -> None:
    made = agent()
    states = made.data.transitions.state[:5]
    action = made.policy("guided", [1.0], torch.Generator().manual_seed(3))(states, torch.zeros(5, dtype=torch.long))
    assert torch.equal(action, plans(made, "guided", [1.0], states)[:, 0, S:])


def test_plans_stay_within_the_range_of_the_data() -> None:
    made = agent(guidance={"energy": "dps", "straight_through": True})
    found = plans(made, "guided", [100.0], made.data.transitions.state[:20])[:, 1:]
    low, high = made.windows.bounds
    assert (found <= high[1:] + 1e-5).all()
    assert (found >= low[1:] - 1e-5).all()


@pytest.mark.slow
def test_guidance_finds_plans_that_are_worth_more() -> None:
    trained = {"steps": 300, "lr": 5e-3}
    settings = {section: TINY[section] | trained for section in ("reward", "critic", "energy_network")}
    settings["denoiser"] = TINY["denoiser"] | {"steps": 1000, "lr": 5e-3, "batch": 64}
    variants = {"looking": {"energy": "dps", "straight_through": True}, "best": {"omega": 0, "candidates": 16}}
    guidance = {"energy_scale": "advantage_std", "beta": 10}
    many = walks(*[H + 2] * 300)  # so that plans from like states differ
    made = agent(data=many, **settings, variants=variants, guidance=guidance, sampler={"steps": 10})
    states = many.transitions.state[:: H + 2][:64]
    worth = lambda name, scale: -made.calibration.energy("advantage_std")(plans(made, name, scale, states), states).mean()  # noqa: E731
    behaviour = worth("behaviour", [])
    assert worth("best", [0.0]) > behaviour + 0.2
    assert worth("looking", [1.0]) > behaviour + 0.2
    assert worth("guided", [1.0]) > behaviour + 0.1


def test_an_energy_sees_plans_through_the_in_painted_denoiser() -> None:
    made = agent(guidance={"energy": "dps", "clip_x0": False})
    timed = made.guidance.policy("guided").timed_energy(torch.Generator())
    assert isinstance(timed, DPS)
    (x, c), t = made.behaviour.sample(8, torch.Generator().manual_seed(0)), torch.full((8,), 0.5)
    torch.testing.assert_close(timed.denoiser(x, t, c)[:, 0, :S], c)
    _, grad = value_and_grad(lambda x: timed(x, t, c), x)
    assert not grad[:, 0, :S].any()  # a state that is known cannot be pushed
    assert grad[:, 1:].any()


@pytest.mark.parametrize("policy_name", ["guided", "looking"])
def test_a_policy_can_leave_the_laboratory(policy_name: str) -> None:
    made = agent(variants={"looking": {"energy": "dps"}}, sampler={"steps": 1})
    module = PolicyModule(made, policy_name)
    observation, noise = made.data.transitions.state[:2] * 2, torch.randn(2, 1, H * (S + A))
    assert {name: tuple(t.shape) for name, t in module.inputs(2).items()} == {
        "observation": (2, S),
        "noise": (2, 1, H * (S + A)),
    }
    states, scale_index = made.data.standardise(observation), torch.zeros(2, dtype=torch.long)
    want = made.policy(policy_name, [1.0], GivenNoise(noise))(states, scale_index).detach()
    torch.testing.assert_close(module.graph(2)(observation, noise), want, atol=1e-4, rtol=1e-4)


# -- the command line --------------------------------------------------------------------------------------------------

RECIPE = """
experiment: offline_rl
agent: diffuser
tasks: {egd/maze2d/umaze-v0: {}}
data: {generator: {name: maze2d, map_name: umaze, steps: 1500, noise: 0.5, seed: 0}}
plan: {horizon: 8}
denoiser: {width: 8, blocks: 2, steps: 30, batch: 16}
reward: {width: 16, layers: 2, steps: 30, batch: 16}
critic: {width: 16, layers: 2, steps: 30, batch: 32}
energy_network: {width: 8, layers: 2, steps: 30, batch: 16}
calibration: {samples: 64, grid: 4}
evaluation: {episodes: 1, envs: 1}
sampler: {steps: 1}
checkpoint_every: 10
log_every: 7
"""
RUN = Path("egd-maze2d-umaze-v0") / "seed-0"


@pytest.fixture
def plan_recipe(recipe: Path) -> Path:
    recipe.write_text(RECIPE)
    return recipe


@pytest.mark.slow
def test_a_run_ends_as_one_that_failed_in_every_phase_and_went_on(
    egd: Any, plan_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert egd("run", plan_recipe, "--out", tmp_path / "whole").exit_code == 0
    for learner in (DenoiserLearner, Reward, EnergyLearner):
        with monkeypatch.context() as patch:
            patch.setattr(learner, "loss", failing(learner.loss, at=15))
            resumed = ["--resume"] if (tmp_path / "failed").exists() else []
            assert "killed" in egd("run", plan_recipe, "--out", tmp_path / "failed", *resumed).output
    assert egd("run", plan_recipe, "--out", tmp_path / "failed", "--resume").exit_code == 0
    whole, failed = (
        {p.stem: load_file(p) for p in (tmp_path / out / RUN / "checkpoints").iterdir()} for out in ("whole", "failed")
    )
    assert set(whole) == set(failed) == {"denoiser", "reward", "critic", "calibration", "energy_guided"}
    for phase, tensors in whole.items():
        assert all(torch.equal(failed[phase][name], tensor) for name, tensor in tensors.items()), phase
    summaries = [json.loads((tmp_path / out / RUN / "summary.json").read_text()) for out in ("whole", "failed")]
    for key in ("algorithm", "headline", "policies", "diagnostics"):
        assert summaries[0][key] == summaries[1][key], key
    assert summaries[0]["headline"] == "guided@1"
    assert set(summaries[0]["policies"]) == {"behaviour", "guided@1"}
    assert set(summaries[0]["diagnostics"]["plans"]) == {"data", "behaviour", "guided"}
    assert {p.name for p in (tmp_path / "whole" / RUN / "figures").iterdir()} >= {"omega.png", "maze.png"}


def failing(loss: Any, at: int) -> Any:
    """The same until that call."""
    calls: list[None] = []

    def until(self: Any, drawn: Any) -> Any:
        calls.append(None)
        if len(calls) == at:
            raise UserError("killed")
        return loss(self, drawn)

    return until


WRONG = {
    "plan.horizon=1": "plan.horizon",
    "plan.horizon=2000": "plan.horizon",
    "plan.steps=3": "plan.steps",
    "training=joint": "training",
    "critic.name=isql": "critic.name",
    "guidance.energy=dsp": "guidance.energy",
    "reward.width=0": "reward.width",
}


@pytest.mark.parametrize("setting", WRONG)
def test_bad_input_is_refused_by_its_key(egd: Any, plan_recipe: Path, tmp_path: Path, setting: str) -> None:
    result = egd("run", plan_recipe, "--out", tmp_path / "out", "--set", setting)
    assert result.exit_code == 2
    assert WRONG[setting] in result.output
    assert "Traceback" not in result.output


def test_the_defaults_are_those_of_the_class_in_sections_that_a_recipe_opens() -> None:
    config = DiffuserConfig.model_validate({"experiment": "e", "task": "t", "denoiser": {"steps": 1}, "guidance": {"beta": 2}})
    assert (config.denoiser.width, config.denoiser.blocks) == (32, 3)
    assert config.guidance.energy.name == "mse"

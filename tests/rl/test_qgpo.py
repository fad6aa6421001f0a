"""QGPO: stored support actions, in-support softmax Q-learning, energies by contrast and by two regressions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from egd.objectives import ExpMSE
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase
from egd.runs.phases import run_phase
from egd.runs.progress import Reporter
from rl.agents.qgpo import QGPO
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable
from rl.runs.recipe import typed

RUN = Path("egd-maze2d-umaze-v0") / "seed-0"


def episodes(n: int = 60, ends: tuple[int, ...] = (19, 39)) -> OfflineData:
    """Transitions along a walk, which starts elsewhere after some rows."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(n + 1, 3, generator=generator)
    following = path[1:].clone()
    following[list(ends)] += 5
    rows = Batch(path[:-1], torch.randn(n, 2, generator=generator).tanh(), path[1:, 0], following, torch.zeros(n))
    return OfflineData(rows, torch.zeros(3), torch.ones(3), -torch.ones(2), torch.ones(2), 0.0, len(ends) + 1)


SMALL: dict[str, Any] = {
    "experiment": "offline_rl",
    "agent": "qgpo",
    "task": "hopper-medium",
    "denoiser": {"width": 16, "blocks": 2, "steps": 5, "batch": 16},
    "critic": {"width": 16, "layers": 2, "steps": 5, "batch": 16},
    "energy_network": {"width": 16, "layers": 2, "steps": 5, "batch": 24},
    "calibration": {"samples": 64, "grid": 4},
    "support": {"actions": 4},
    "sampler": {"steps": 4},
    "guidance": {"energy": {"samples": 4}},
}
VARIANTS: dict[str, Any] = {
    "mse": {"energy": "mse"},
    "exp_mse": {"energy": {"name": "exp_mse", "samples": 4}},
    "wide": {"energy": {"samples": 10}},
    "steep": {"beta": 5},
}


def agent(**over: Any) -> Any:
    config: Any = typed({**SMALL, **over}, "test")
    return QGPO(config, episodes(), torch.device("cpu"))


def train(made: QGPO) -> QGPO:
    for phase in made.phases():
        generator = torch.Generator().manual_seed(1)
        for _ in range(phase.steps):
            phase.learner.update(generator)
    return made


# -- settings --------------------------------------------------------------------------------------------------------


def test_a_recipe_that_names_some_keys_keeps_what_qgpo_has_in_other_places_than_aepo() -> None:
    config = agent(variants=VARIANTS | {"closed": {"energy": "dps"}}).config
    assert (config.critic.name, config.critic.width) == ("isql", 16)
    assert (config.energy_network.layers, config.guidance.energy.name, config.guidance.clip_x0) == (2, "cep", False)
    assert config.guidance.energy.spec.settings == {"samples": 4}
    energies = {name: guidance.energy.name for name, guidance in config.variants.items()}
    assert energies == {"mse": "mse", "exp_mse": "exp_mse", "wide": "cep", "steep": "cep", "closed": "dps"}
    assert not any(guidance.clip_x0 for guidance in config.variants.values())
    assert QGPO.Config.model_validate({"experiment": "e", "task": "t"}).energy_network.layers == 4
    assert agent(critic={"name": "iql"}).config.critic.name == "iql"


def test_the_table_has_as_many_actions_as_the_greediest_wants() -> None:
    assert agent().support.k == 4
    assert agent(support={"actions": 7}).support.k == 7
    wide = agent(variants=VARIANTS)
    assert wide.support.k == 10
    tables = [next(p.cache_key for p in made.phases() if p.name == "support") for made in (wide, agent())]
    assert tables[0] != tables[1]  # the same recipe keys, another table
    plain = {"guidance": {"energy": "mse"}}
    assert agent(critic={"name": "iql"}, **plain).support is None
    assert agent(**plain).support.k == 4  # for the critic


# -- the table -------------------------------------------------------------------------------------------------------


def states_for_actions(states: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Actions that tell of which state they are, and are random."""
    return states[:, None, :2] + torch.zeros(len(states), k, 2) + 1e-3 * torch.randn(len(states), k, 2, generator=generator)


def test_states_that_follow_one_another_share_their_actions() -> None:
    data = episodes()
    table = SupportTable(data, 3, states_for_actions)
    assert len(table.states) == 60 + 3  # of the next states, those of three last rows are no row's state
    table.update(torch.Generator().manual_seed(0))
    rows = torch.arange(60)
    for actions, states in ((table.of(rows), data.transitions.state), (table.of_next(rows), data.transitions.next_state)):
        assert actions.shape == (60, 3, 2)
        assert float((actions - states[:, None, :2]).abs().max()) < 0.01
    assert torch.equal(table.of_next(rows[:19]), table.of(rows[1:20]))


def test_a_table_half_drawn_goes_on_bit_for_bit() -> None:
    data = episodes(700)
    whole, half, again = (SupportTable(data, 3, states_for_actions) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(whole.steps):
        whole.update(generator)
    generator.manual_seed(0)
    half.update(generator)
    state = half.state()
    assert state["actions"].shape == (256, 3, 2)  # no more is kept than is drawn
    again.load(state)
    for _ in range(whole.steps - 1):
        again.update(generator)
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in whole.state().items())
    with pytest.raises(ValueError, match="do not fit"):
        SupportTable(data, 4, states_for_actions).load(whole.state())


def test_a_large_table_is_not_written_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr("egd.runs.phase_state.save_phase", lambda folder, name, tensors, about: written.append(about["step"]))
    table = SupportTable(episodes(2500), 3, states_for_actions)
    phase = Phase("support", table.steps, table, checkpoint_every=table.checkpoint_every(1))
    run_phase(phase, RunFolder(tmp_path), Reporter(), seed=0, device="cpu", checkpoint_every=1, log_every=1)
    assert table.steps == 10
    assert written == [3, 6, 9, 10]


# -- objectives ------------------------------------------------------------------------------------------------------


def test_variants_train_on_what_they_compare() -> None:
    made = agent(variants=VARIANTS)
    made.support.actions = torch.randn(made.support.shape, generator=torch.Generator().manual_seed(3))
    drawn = {name: energy.learner.draw(torch.Generator().manual_seed(0)) for name, energy in made.guidance.energies.items()}
    for name, k in {"guided": 4, "exp_mse": 4, "wide": 10}.items():
        x0, states, t, _ = drawn[name]
        assert isinstance(states, Tensor)
        assert len(x0) == len(states) == len(t) == 24 // k * k  # ten do not divide 24: 20 rows
        groups = states.reshape(-1, k, 3)
        assert (groups == groups[:, :1]).all()
        assert all(len(of_state.unique(dim=0)) == k for of_state in x0.reshape(-1, k, 2))
    actions, states, _, _ = drawn["mse"]
    rows = made.data.transitions
    matches = (rows.state[:, None] == states).all(2) & (rows.action[:, None] == actions).all(2)
    assert matches.any(0).all()  # the regression is on the data's own actions


def test_every_variant_learns_and_acts() -> None:
    made = train(agent(variants=VARIANTS))
    assert set(made.guidance.energies) == {"guided", *VARIANTS}
    states = made.data.transitions.state[:8]
    seen = []
    for name in made.policies():
        act = made.policy(name, [] if name == "behaviour" else [3.0], torch.Generator().manual_seed(0))
        seen.append(act(states, torch.zeros(8, dtype=torch.long)))
        assert seen[-1].isfinite().all()
    assert len({float(actions.sum()) for actions in seen}) == len(seen)


def test_exp_mse_by_groups_learns_states_whose_energies_are_far_apart() -> None:
    """Two states, two actions each, nothing known of the action: E_t = -log mean exp(-E), of the energies 0 and 1 in one state
    and 20 and 21 in the other, which a batch's common scale cannot see.
    """
    energies = torch.tensor([[0.0, 1.0], [20.0, 21.0]], dtype=torch.float64)
    state = torch.tensor([0, 0, 1, 1])
    found = {}
    for samples in (2, None):
        level = torch.tensor([0.0, 19.0], dtype=torch.float64, requires_grad=True)
        objective = ExpMSE(lambda x, c: x[:, 0], samples=samples)
        optimiser = torch.optim.Adam([level], lr=0.02)
        for _ in range(1000):
            x0 = energies.reshape(4, 1)
            loss, _ = objective.loss(lambda x, t, c: level[state], x0, x0, torch.ones(4), None, torch.Generator())  # noqa: B023
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        found[samples] = level.tolist()
    exact = (-torch.logsumexp(-energies, 1) + torch.log(torch.tensor(2.0))).tolist()
    assert found[2] == pytest.approx(exact, abs=1e-3)
    assert found[None][0] == pytest.approx(exact[0], abs=1e-3)
    assert abs(found[None][1] - exact[1]) > 0.5


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def qgpo(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("rl.envs.maze2d.step_limit", lambda name: 20)
    tree = yaml.safe_load(recipe.read_text()) | {"agent": "qgpo", "support": {"actions": 4}, "checkpoint_every": 1}
    tree["guidance"] = {"energy": {"samples": 4}, "omegas": [3]}
    tree["variants"] = {"mse": {"energy": "mse"}, "exp_mse": {"energy": {"name": "exp_mse", "samples": 4}}}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def test_qgpo_and_its_two_rivals_come_of_one_run(egd: Any, qgpo: Path, tmp_path: Path) -> None:
    result = egd("run", qgpo, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / RUN / "summary.json").read_text())
    scales = {f"{name}@{omega}" for name in ("guided", "mse", "exp_mse") for omega in (1, 3)}
    assert set(summary["policies"]) == {"behaviour"} | scales
    found = {path.stem for path in (tmp_path / RUN / "checkpoints").iterdir()}
    assert found == {"denoiser", "support", "critic", "calibration", "energy_guided", "energy_mse", "energy_exp_mse"}
    (tmp_path / RUN / "checkpoints" / "support.safetensors").unlink()  # large, and no policy needs it
    assert egd("eval", tmp_path / RUN, "--episodes", 1).exit_code == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("guidance.energy.samples=1", ["guidance.energy.samples", "1 does not fit", "2"]),
        ("variants.exp_mse.energy.samples=0", ["variants.exp_mse.energy.samples", "0 does not fit"]),
        ("support.actions=0", ["support.actions", "0"]),
        ("critic.alpha=3", ["critic.alpha", "beta"]),
        ("critic.beta=-1", ["critic.beta", "-1"]),
    ],
)
def test_bad_input_is_named(egd: Any, qgpo: Path, tmp_path: Path, setting: str, words: list[str]) -> None:
    result = egd("run", qgpo, "--out", tmp_path / "out", "--set", setting)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()

"""Environments that come with datasets: which are made, what of them is learned from, and that an evaluation ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from egd.config.trust import trusting
from egd.errors import UserError
from rl.data.episodes import load_episodes
from rl.data.health import problems_of
from rl.data.minari_store import episode_buffer, write_dataset
from rl.data.stored import place_of
from rl.envs.making import check_env, env_factory, make_env
from rl.envs.spaces import flat_paths, flatten_observation
from rl.envs.specs import NoEnvironment
from rl.evaluation.rollouts import Player, PolicyBatch, rollouts
from rl.tasks import find_task
from tests.rl.worlds import Opaque, box

ID = "mine/world-v0"


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    gym.register("World-v0", entry_point="tests.rl.worlds:World")
    yield
    del gym.registry["World-v0"]


def recorded(env: gym.Env[Any, Any], space: Any = None, steps: int = 40) -> None:
    """A dataset of that environment."""
    seen = [env.unwrapped.observation()] * (steps + 1)  # type: ignore[attr-defined]
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 1)).astype(np.float32)
    buffer = episode_buffer(stacked(seen), actions, actions[:, 0])
    write_dataset(ID, [buffer], space or env.observation_space, env.action_space, env.spec, {})


def stacked(seen: list[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {key: stacked([one[key] for one in seen]) for key in seen[0]}
    return np.stack(seen)


def world(**settings: Any) -> gym.Env[Any, Any]:
    env = gym.make("World-v0", **settings)
    env.reset()
    return env


def test_data_and_environment_have_their_entries_in_one_order() -> None:
    recorded(world(max_episode_steps=5))
    want = [5.0, 0, 1, 2, 3, 7, 9]  # apple/x, apple/y, moon, zebra
    (rows,) = load_episodes([ID]).observations
    assert rows.tolist() == [want] * 41
    env = make_env(find_task(ID))
    assert env.reset(seed=0)[0].tolist() == want and env.observation_space.shape == (7,)
    assert env.step(np.zeros(1, np.float32))[0].tolist() == want
    check_env(find_task(ID), 7, 1, dataset=ID)


def test_equal_sizes_are_not_equal_entries() -> None:
    recorded(world(max_episode_steps=5))
    path = place_of(ID) / "data/metadata.json"
    tree = json.loads(path.read_text())
    tree["observation_space"] = tree["observation_space"].replace("zebra", "zero")
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"'zebra': \(1,\).*'zero': \(1,\)"):
        check_env(find_task(ID), 7, 1, dataset=ID)


SPACES: dict[str, Any] = {
    "image": Box(0, 255, (8, 8, 3), np.uint8),
    "stack of images": Box(0, 255, (4, 84, 84), np.uint8),
    "Discrete": Discrete(3),
    "an image among others": Dict(at=box(2), seen=Box(0, 255, (8, 8), np.uint8)),
}
ACTIONS: dict[str, Any] = {
    "Discrete": Discrete(4),
    "MultiDiscrete": MultiDiscrete([2, 3]),
    "MultiBinary": MultiBinary(3),
    "integers": Box(0, 3, (1,), np.int64),
    "two axes": Box(-1, 1, (2, 1), np.float32),
    "unbounded": Box(-np.inf, np.inf, (1,), np.float32),
}


def of_spaces(observations: Any, actions: Any) -> None:
    buffer = episode_buffer(np.zeros((3, *(observations.shape or ()))), np.zeros((2, *actions.shape)), np.zeros(2, np.float32))
    write_dataset(ID, [buffer], observations, actions, None, {})


@pytest.mark.parametrize("name", SPACES)
def test_observations_that_cannot_be_learned_from_name_their_space(name: str) -> None:
    buffers: list[Any] = []
    write_dataset(ID, buffers, SPACES[name], Box(-1, 1, (1,), np.float32), None, {})
    with pytest.raises(UserError, match=r"the observation space.* is (Box\(0, 255|Discrete)"):
        load_episodes([ID])


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_that_cannot_be_learned_name_their_space(name: str) -> None:
    of_spaces(box(2), ACTIONS[name])
    with pytest.raises(UserError, match=r"the action space is (Multi|Discrete|Box)"):
        load_episodes([ID])


def test_several_axes_become_one() -> None:
    of_spaces(box(2, 3), Box(-1, 1, (1,), np.float32))
    assert load_episodes([ID]).observations[0].shape == (3, 6)
    paths = flat_paths(box(2, 3))
    assert flatten_observation(np.arange(6.0).reshape(2, 3), paths).tolist() == [0, 1, 2, 3, 4, 5]


def hostile(tmp_path: Path, **spec: Any) -> Path:
    """A dataset whose metadata names a program as its environment; the file is there once that has run."""
    recorded(world(max_episode_steps=5))
    ran, path = tmp_path / "ran", place_of(ID) / "data/metadata.json"
    tree = json.loads(path.read_text())
    program = {"entry_point": "subprocess:Popen", "kwargs": {"args": ["touch", str(ran)]}}
    wrapper = {"name": "Nice", "entry_point": "subprocess:Popen", "kwargs": {"args": ["touch", str(ran)]}}
    changed = {**json.loads(tree["env_spec"]), **(program if not spec else {"additional_wrappers": [wrapper]})}
    tree["env_spec"] = json.dumps(changed)
    path.write_text(json.dumps(tree))
    return ran


@pytest.mark.parametrize("where", ["entry point", "wrapper"])
def test_metadata_run_no_code(egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    ran = hostile(tmp_path, **({} if where == "entry point" else {"wrapper": True}))
    commands: list[list[Any]] = [
        ["run", recipe, "--task", ID, "--out", tmp_path / "out", "--set", "data.generator=null"],
        ["data", "check", ID],
        ["data", "generate", "mine/noisy-v0", "--generator", "noisy", "--source", ID],
    ]
    for command in commands:
        result = egd(*command)
        assert result.exit_code == 2 and "--trust-code" in result.output, result.output
    assert egd("data", "describe", ID).exit_code == 0
    with pytest.raises(UserError, match="subprocess:Popen"):
        env_factory(find_task(ID), ())()
    assert not ran.exists()


def test_an_evaluation_runs_no_code_of_metadata(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(world(max_episode_steps=5))
    recipe = tmp_path / "bc.yaml"
    recipe.write_text(
        f"experiment: offline_rl\nagent: bc\ntasks: [{ID}]\nactor: {{width: 8, layers: 1, steps: 2, batch: 8}}\n"
        "evaluation: {episodes: 1, envs: 1}\n"
    )
    trained = egd("run", recipe, "--out", tmp_path / "out")
    assert trained.exit_code == 0, trained.output
    (run,) = (path.parent for path in (tmp_path / "out").rglob("summary.json"))
    assert egd("eval", run).exit_code == 0
    place = place_of(ID) / "data/metadata.json"
    ran, tree = tmp_path / "ran", json.loads(place.read_text())
    program = {"entry_point": "subprocess:Popen", "kwargs": {"args": ["touch", str(ran)]}}
    tree["env_spec"] = json.dumps({**json.loads(tree["env_spec"]), **program})
    place.write_text(json.dumps(tree))
    for command in (
        ["eval", run],
        ["eval", run, "--video", tmp_path / "film.gif"],
        ["run", run / "config.yaml", "-o", tmp_path],
    ):
        result = egd(*command)
        assert result.exit_code == 2 and "--trust-code" in result.output, result.output
    assert not ran.exists()


@pytest.mark.parametrize("where", ["entry point", "wrapper"])
def test_an_environment_of_the_script_that_recorded_it_is_trained_without(egd: Any, tmp_path: Path, where: str) -> None:
    """No option helps there: ``__main__`` is another script now. What does help is said."""
    recorded(world(max_episode_steps=5))
    place = place_of(ID) / "data/metadata.json"
    tree = json.loads(place.read_text())
    wrapper = [{"name": "Nice", "entry_point": "__main__:Nice", "kwargs": {}}]
    changed = {"entry_point": "__main__:World"} if where == "entry point" else {"additional_wrappers": wrapper}
    tree["env_spec"] = json.dumps(json.loads(tree["env_spec"]) | changed)
    place.write_text(json.dumps(tree))
    recipe = tmp_path / "bc.yaml"
    recipe.write_text(f"experiment: offline_rl\nagent: bc\ntasks: [{ID}]\nactor: {{width: 8, layers: 1, steps: 2, batch: 8}}\n")
    name = "World" if where == "entry point" else "Nice"
    advice = f"__main__:{name}, is part of the script that recorded it"
    for flags in ([], ["--trust-code"]):
        done = egd("run", recipe, "--out", tmp_path / f"out{len(flags)}", *flags)
        assert done.exit_code == 0, done.output
        assert "is trained, but not evaluated" in done.output and advice in done.output
        assert f"entry_point='my_env:{name}'" in done.output
    (run,) = (path.parent for path in (tmp_path / "out0").rglob("summary.json"))
    refused = egd("eval", run)
    assert refused.exit_code == 2 and advice in refused.output


def test_code_of_ones_own_is_run_where_one_says_so() -> None:
    recorded(world(max_episode_steps=5))
    del gym.registry["World-v0"]
    try:
        with pytest.raises(UserError, match=r"'tests.rl.worlds:World' is code outside the library.*--trust-code"):
            make_env(find_task(ID))
        with trusting(True):
            assert make_env(find_task(ID)).observation_space.shape == (7,)
    finally:
        gym.register("World-v0", entry_point="tests.rl.worlds:World")


def test_actions_on_another_scale_than_the_environments_are_refused() -> None:
    env = gym.make("Pendulum-v1")  # takes torques from -2 to 2
    rows, actions = np.zeros((4, 3), np.float32), np.ones((3, 1), np.float32)
    buffers = [episode_buffer(rows, actions, actions[:, 0])]
    write_dataset(ID, buffers, env.observation_space, Box(-1, 1, (1,), np.float32), env.spec, {})
    said = r"takes actions from \[-2.0\] to \[2.0\], those recorded are from \[-1.0\] to \[1.0\].*RescaleAction"
    with pytest.raises(UserError, match=said):
        check_env(find_task(ID), 3, 1, dataset=ID)
    (problem,) = problems_of(ID)[ID]
    assert "RescaleAction" in problem
    wrapped = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    write_dataset(
        "mine/scaled-v0",
        buffers,
        env.observation_space,
        wrapped.action_space,
        gym.wrappers.RescaleAction(env, -1.0, 1.0).spec,
        {},
    )
    assert problems_of("mine/scaled-v0") == {"mine/scaled-v0": []}
    scaled = make_env(find_task("mine/scaled-v0"))
    check_env(find_task("mine/scaled-v0"), 3, 1, dataset="mine/scaled-v0")
    scaled.reset(seed=0)
    scaled.step(np.ones(1, np.float32))
    assert scaled.unwrapped.last_u == 2  # type: ignore[attr-defined]


def changed_spec(**spec: Any) -> None:
    recorded(world(max_episode_steps=5))
    path = place_of(ID) / "data/metadata.json"
    tree = json.loads(path.read_text())
    tree["env_spec"] = json.dumps({**json.loads(gym.spec("Pendulum-v1").to_json()), **spec})
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize("file", ["/etc/model.xml", "~/model.xml", "../model.xml", "models/../model.xml", "C:\\model.xml"])
def test_data_name_no_file_of_this_machine(file: str) -> None:
    changed_spec(kwargs={"settings": [{"xml_file": file}]})
    with pytest.raises(UserError, match=r"model.xml' is a file of this machine.*--trust-code"):
        make_env(find_task(ID))


@pytest.mark.parametrize(
    "spec",
    [
        {"entry_point": ["subprocess:Popen"]},
        {"entry_point": {"subprocess": "Popen"}},
        {"additional_wrappers": [{"name": "Nice", "entry_point": {"a": 1}, "kwargs": {}}]},
    ],
)
def test_entry_points_that_are_no_text_are_not_trusted(spec: dict[str, Any]) -> None:
    changed_spec(**spec)
    with pytest.raises(UserError, match="is code outside the library"):
        make_env(find_task(ID))


def test_what_settings_of_data_break_in_an_episode_is_one_message() -> None:
    changed_spec(kwargs={"g": "heavy"})
    env = make_env(find_task(ID))
    env.reset(seed=0)
    with pytest.raises(UserError, match=rf"Pendulum-v1, which comes with {ID}, fails in step 1 .*TypeError"):
        env.step(np.zeros(1, np.float32))


def test_a_worker_is_told_what_is_trusted() -> None:
    recorded(world(max_episode_steps=5))
    player = Player([PolicyBatch(["still"], lambda s, scale_index: torch.ones(len(s), 1))], lambda s: s, 2, 2, 0)
    (found,) = rollouts(env_factory(find_task(ID), ()), [player], workers=1)  # a fresh interpreter: nothing is registered there
    assert found.returns["still"].tolist() == [5, 5]


def test_without_an_environment_a_run_is_trained_and_not_evaluated(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    recorded(Opaque(world(max_episode_steps=5)))
    with pytest.raises(NoEnvironment, match="wrapped in Opaque"):
        make_env(find_task(ID))
    assert problems_of(ID) == {ID: []}
    settings = ["--set", "data.generator=null", "--set", "evaluation.every=5", "--set", "variants={}"]
    result = egd("run", recipe, "--task", ID, "--out", tmp_path / "out", *settings)
    assert result.exit_code == 0, result.output
    assert "not evaluated: the environment that comes with" in " ".join(result.output.split())
    assert "not evaluated" in result.output.splitlines()[-3], "the table says so, too"
    (folder,) = (path.parent for path in (tmp_path / "out").rglob("summary.json"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["policies"] == {} and summary["best"] is None and "Opaque" in summary["not_evaluated"]
    assert {path.stem for path in (folder / "checkpoints").glob("*.safetensors")} >= {"denoiser", "critic"}
    for command in (["eval", folder], ["report", folder]):
        result = egd(*command)
        assert result.exit_code == 2 and ("Opaque" in result.output or "evaluated" in result.output), result.output
    described = egd("data", "describe", ID)
    assert "none: runs are trained, and not evaluated" in described.output, described.output
    selected = egd("select", folder, "--states", "4", "--actions", "4", "--json", tmp_path / "selected.json")
    assert selected.exit_code == 0, selected.output
    found = json.loads((tmp_path / "selected.json").read_text())
    policies = {row["policy"] for row in found["rows"]}
    assert policies >= {"behaviour", "guided@1"} and found["chosen"].rpartition(" ")[2] in policies
    assert found["regret"] is None and all(row["simulated"] is None for row in found["rows"])


def test_without_the_dataset_there_is_no_environment_and_it_is_the_dataset_that_is_missing() -> None:
    with pytest.raises(UserError, match=rf"^dataset {ID} is not in .*minari; set MINARI_DATASETS_PATH"):
        make_env(find_task(ID))
    recorded(world(max_episode_steps=5))
    (place_of(ID) / "data/metadata.json").unlink()
    with pytest.raises(UserError, match=rf"dataset {ID} is incomplete: .* lacks data/metadata.json"):
        make_env(find_task(ID))


def test_an_evaluation_ends_or_is_refused() -> None:
    recorded(world())
    task = find_task(ID)
    with pytest.raises(UserError, match="has no time limit") as refused:
        make_env(task)
    assert refused.value.key == "evaluation.max_steps"
    for own, given, steps in ((None, 3, 3), (2, 3, 2), (4, 3, 3)):
        env = make_env(replace(task, max_steps=given), spec=gym.make("World-v0", max_episode_steps=own).spec)
        env.reset(seed=0)
        ended = [env.step(np.zeros(1, np.float32))[3] for _ in range(steps)]
        assert ended == [False] * (steps - 1) + [True]


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_simulator_that_diverges_is_an_error(what: str) -> None:
    env = make_env(replace(find_task("a/b-v0"), max_steps=9), spec=gym.make("World-v0", spoilt=what).spec)
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(1, np.float32))
    with pytest.raises(UserError, match=rf"World-v0 gave the {what} .*nan.* in step 3 of an episode"):
        env.step(np.zeros(1, np.float32))


def test_actions_that_are_no_numbers_never_reach_the_simulator() -> None:
    task, spec = replace(find_task("a/b-v0"), max_steps=4), gym.make("World-v0").spec
    calls: list[int] = []

    def act(states: torch.Tensor, scale_index: torch.Tensor) -> torch.Tensor:
        calls.append(len(states))
        action = torch.full((len(states), 1), 1.5)
        action[(scale_index == 1) & (len(calls) == 3)] = torch.nan
        return action

    def made() -> Any:
        return make_env(task, spec=spec)

    with pytest.raises(UserError, match=r"policy 'second@2' gave the action \[nan\] in step 2 of an episode"):
        rollouts(made, [Player([PolicyBatch(["first", "second@2"], act)], lambda s: s, 1, 1, 0)])
    calls[:] = [0] * 9
    (found,) = rollouts(made, [Player([PolicyBatch(["first"], act)], lambda s: s, 2, 1, 0)])
    assert found.clipped == {"first": 8} and found.returns["first"].tolist() == [4, 4], "clipped to 1 a step"
    env = made()
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"was given the action \[nan\] in step 1"):
        env.step(np.array([np.nan], np.float32))
    assert env.unwrapped.steps == 0

"""The table of tasks: D4RL's names and reference scores, what a name or an id leads to, and ``egd list``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.agents import AGENTS
from rl.tasks import REWARDS, TASKS, RewardTransform, find_task

# D4RL's infos.py: id, (reference min, reference max).
HALFCHEETAH, HOPPER, WALKER2D = (-280.178953, 12135.0), (-20.272305, 3234.3), (1.629008, 4592.3)
PEN, HAMMER = (96.262799, 3076.8331017826877), (-274.856578, 12794.134825156867)
DOOR, RELOCATE = (-56.512833, 2880.5693087298737), (-6.425911, 4233.877797728884)
D4RL = {
    "halfcheetah-medium-expert-v2": HALFCHEETAH,
    "hopper-medium-expert-v2": HOPPER,
    "walker2d-medium-expert-v2": WALKER2D,
    "halfcheetah-medium-v2": HALFCHEETAH,
    "hopper-medium-v2": HOPPER,
    "walker2d-medium-v2": WALKER2D,
    "halfcheetah-medium-replay-v2": HALFCHEETAH,
    "hopper-medium-replay-v2": HOPPER,
    "walker2d-medium-replay-v2": WALKER2D,
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "antmaze-umaze-v2": (0.0, 1.0),
    "antmaze-umaze-diverse-v2": (0.0, 1.0),
    "antmaze-medium-play-v2": (0.0, 1.0),
    "antmaze-medium-diverse-v2": (0.0, 1.0),
    "antmaze-large-play-v2": (0.0, 1.0),
    "antmaze-large-diverse-v2": (0.0, 1.0),
    "pen-human-v1": PEN,
    "pen-expert-v1": PEN,
    "pen-cloned-v1": PEN,
    "hammer-human-v1": HAMMER,
    "hammer-expert-v1": HAMMER,
    "hammer-cloned-v1": HAMMER,
    "door-human-v1": DOOR,
    "door-expert-v1": DOOR,
    "door-cloned-v1": DOOR,
    "relocate-human-v1": RELOCATE,
    "relocate-expert-v1": RELOCATE,
    "relocate-cloned-v1": RELOCATE,
}
STEPS = {"maze2d-umaze": 300, "maze2d-medium": 600, "maze2d-large": 800, "antmaze-umaze": 700, "antmaze": 1000, "pen": 100}
STEPS |= {"hammer": 200, "door": 200, "relocate": 200, "halfcheetah": 1000, "hopper": 1000, "walker2d": 1000}


def test_the_benchmark_is_the_33_tasks_with_d4rls_references() -> None:
    found = {task.benchmark: task.reference for task in TASKS.values() if task.benchmark}
    assert found == D4RL and len(found) == 33


@pytest.mark.parametrize("name", D4RL)
def test_a_name_of_d4rls_finds_a_whole_task(name: str) -> None:
    task = find_task(name)
    assert task.benchmark == name and task.datasets and task.env_id and task.env_note
    longest = max((head for head in STEPS if name.startswith(head)), key=len)
    assert task.max_steps == STEPS[longest]
    assert task.score(D4RL[name][0]) == pytest.approx(0, abs=1e-9) and task.score(D4RL[name][1]) == pytest.approx(100)


def test_transforms_read_as_what_they_do() -> None:
    assert {family: str(transform) for family, transform in REWARDS.items()} == {
        "gym-mujoco": "range",
        "adroit": "range",
        "maze2d": "r",
        "antmaze": "r - 1",
        "other": "r",
    }
    assert str(RewardTransform("range", -1)) == "(r - 1) x range" and str(RewardTransform(2, 0.5)) == "(r + 0.5) x 2"


@pytest.mark.parametrize(
    ("dataset", "family", "env_id", "scored"),
    [
        ("egd/hopper/noisy-v0", "gym-mujoco", "Hopper-v5", True),
        ("mujoco/walker2d/mixed-v0", "gym-mujoco", "Walker2d-v5", True),
        ("egd/pen/half-v0", "adroit", "AdroitHandPen-v1", True),
        ("D4RL/pointmaze/medium-dense-noisy-v0", "maze2d", "egd/Maze2D-v0", True),
        ("egd/maze2d/large-v3", "maze2d", "egd/Maze2D-v0", False),
        ("mine/data-v0", "other", None, False),
    ],
)
def test_an_id_of_a_variant_finds_its_environment(dataset: str, family: str, env_id: str | None, scored: bool) -> None:
    task = find_task(dataset)
    assert (task.name, task.datasets, task.benchmark) == (dataset, (dataset,), None)
    assert (task.family, task.env_id, task.reference is not None) == (family, env_id, scored)


def lines(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line.split()]


def test_list_tasks_has_every_task_in_a_line_of_its_own(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from egd.cli import main as cli

    monkeypatch.setattr(cli.console, "width", 80)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    result = egd("list", "tasks")
    assert result.exit_code == 0, result.output
    heads = lines(result.output)
    assert [heads.count(name) for name in TASKS] == [1] * len(TASKS)
    assert max(map(len, result.output.splitlines())) <= 80
    hopper = next(line for line in result.output.splitlines() if line.startswith("hopper-medium "))
    assert hopper.split() == ["hopper-medium", "Hopper-v5", "1000", "-20", "to", "3234", "range", "no"]
    assert "vp_linear" not in result.output


def test_list_tasks_wide_has_everything(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    output = egd("list", "tasks", "--wide").output
    for task in TASKS.values():
        row = next(line for line in output.splitlines() if line.split()[:1] == [task.name])
        assert " + ".join(task.datasets) in row and task.env_note in row and (task.benchmark or "*") in row
        assert ("not on the hub" in row) == task.name.endswith("replay")


def test_list_tasks_knows_what_is_here(egd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert egd("data", "generate", "D4RL/pointmaze/umaze-v2", "--steps", "60").exit_code == 0
    assert egd("data", "generate", "mujoco/hopper/medium-v0", "--steps", "60").exit_code == 0  # not its data, but there
    here = {line.split()[0]: line.split()[-1] for line in egd("list", "tasks").output.splitlines() if len(line.split()) > 7}
    assert (here["maze2d-umaze"], here["hopper-medium"], here["hopper-medium-expert"]) == ("yes", "yes", "part")
    assert (here["maze2d-medium"], here["hopper-expert"]) == ("no", "no")


def test_list_narrows_to_what_is_named(egd: Any) -> None:
    everything = egd("list").output
    assert "vp_linear" in everything and "quickstart.yaml" in everything and "antmaze-large-play" not in everything
    assert "quickstart.yaml" in egd("list", "recipes").output
    assert "vp_linear" not in egd("list", "recipes").output
    assert "quickstart.yaml" not in egd("list", "components").output
    assert set(AGENTS) <= set(lines(egd("list", "methods").output))
    wrong = egd("list", "taks")
    assert wrong.exit_code == 2 and "did you mean 'tasks'" in wrong.output

"""Recipes that build on others, and tasks chosen by shell patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from egd.errors import UserError
from egd.runs import resources
from egd.runs.bases import read_recipe
from egd.runs.experiment import Options
from rl.runs.experiment import offline_rl

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a recipe, and give back its path."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return written


BASE = """
experiment: offline_rl
tasks: {pen-human: {}, door-human: {critic: {gap: 5}}, door-cloned: {}}
critic: {name: cql, width: 8, alpha: 2}
methods: {a: {agent: cql}, b: {agent: bc}}
budgets: {smoke: {critic: {steps: 5}, tasks: {'door-*': {critic: {batch: 4}}}}}
"""


def test_a_recipe_has_what_its_base_has_and_says_what_differs(write: Any) -> None:
    write("base.yaml", BASE)
    write("middle.yaml", "base: base.yaml\nseed: 3\n")
    (write("sub/x", "").parent / "top.yaml").write_text(
        "base: ../middle.yaml\ncritic: {name: isql, beta: 4}\nmethods: {a: {seed: 7}}\nbudgets: {smoke: {log_every: 2}}\n"
    )
    found = read_recipe(write("sub/x", "").parent / "top.yaml")
    assert found.pop("critic") == {"name": "isql", "width": 8, "beta": 4}  # alpha is CQL's own
    base = yaml.safe_load(BASE)
    del base["critic"]
    methods = {"a": {"agent": "cql", "seed": 7}, "b": {"agent": "bc"}}
    budgets = {"smoke": base["budgets"]["smoke"] | {"log_every": 2}}
    assert found == base | {"seed": 3, "methods": methods, "budgets": budgets}


def test_a_list_of_tasks_chooses_among_those_of_the_base(write: Any) -> None:
    write("base.yaml", BASE)
    chosen = read_recipe(write("top.yaml", "base: base.yaml\ntasks: ['door-*', pen-human, pen-expert]\n"))["tasks"]
    assert chosen == {"door-human": {"critic": {"gap": 5}}, "door-cloned": {}, "pen-human": {}, "pen-expert": None}
    with pytest.raises(UserError, match=r"matches 'dor-.'; did you mean 'door-human'"):
        read_recipe(write("top.yaml", "base: base.yaml\ntasks: ['dor-*']\n"))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("bse.yaml", "there is no .*bse.yaml; did you mean 'base.yaml'"),
        ("top.yaml", "without end: top.yaml -> top.yaml"),
        ("circle.yaml", "without end: top.yaml -> circle.yaml -> top.yaml"),
        ("run/config.yaml", "stands alone"),
        ("[a]", "write the path of a recipe"),
    ],
)
def test_a_base_that_cannot_be_is_refused(write: Any, base: str, said: str) -> None:
    write("base.yaml", BASE)
    write("circle.yaml", "base: top.yaml\n")
    write("run/config.yaml", BASE)
    with pytest.raises(UserError, match=said) as caught:
        read_recipe(write("top.yaml", f"base: {base}\n"))
    assert caught.value.key


def test_the_config_of_a_run_builds_on_nothing(write: Any) -> None:
    write("base.yaml", BASE)
    with pytest.raises(UserError, match="stands alone"):
        read_recipe(write("config.yaml", "base: base.yaml\n"))


def planned(path: Path, *tasks: str, budget: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    options = Options(out=Path("nowhere"), source=str(path), tasks=tasks, budget=budget)
    jobs: Any = offline_rl.plan(read_recipe(path), options)
    return {(run.config.task, run.method): run.config.model_dump(mode="json") for job in jobs for run in job.planned}


def test_a_budget_may_say_more_of_tasks_of_some_names(write: Any) -> None:
    found = planned(write("base.yaml", BASE), budget="smoke")
    sizes = {task: (c["critic"]["steps"], c["critic"]["batch"]) for (task, method), c in found.items() if method == "a"}
    assert sizes == {"pen-human": (5, 256), "door-human": (5, 4), "door-cloned": (5, 4)}


def test_tasks_are_chosen_by_patterns(write: Any, egd: Any, tmp_path: Path) -> None:
    path = write("base.yaml", BASE)
    assert {task for task, _ in planned(path, "door-*")} == {"door-human", "door-cloned"}
    assert {task for task, _ in planned(path, "*-human", "hopper-medium")} == {"pen-human", "door-human", "hopper-medium"}
    result = egd("run", path, "--task", "dor*", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--task: no task here matches 'dor*'" in result.output


@pytest.mark.parametrize("name", ["aepo", "edis"])
def test_the_recipe_of_a_family_makes_the_runs_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "check", lambda *_: None)
    whole = planned(RECIPES / f"{name}.yaml", "*human", "*-medium", "*umaze", budget="full")
    families: dict[Any, Any] = {}
    for family in ("adroit", "gym_mujoco", "antmaze", "pointmaze"):
        families |= planned(RECIPES / f"{name}_{family}.yaml", budget="full")
    assert {run: families[run] for run in whole} == whole

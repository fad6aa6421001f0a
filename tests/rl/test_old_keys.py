"""Keys of earlier versions are refused with the line to write; another critic keeps what all critics share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from egd.config.base import merge
from egd.errors import UserError
from rl.runs.old_keys import refuse_old_keys
from rl.runs.recipe import SECTIONS

OLD = {
    "kind: iql": "  agent: iql",
    "critic: {kind: cql, width: 8, settings: {gap: 5}}": "  critic: {name: cql, width: 8, gap: 5}",
    "methods: {a: {kind: cql}, b: {kind: cql}}": "  agent: cql   # in methods.a and 1 more",
    "budgets: {quick: {methods: {a: {actor: {kind: gaussian}}}}}": "  actor: {name: gaussian}   # in budgets.quick.methods.a",
    "tasks: {pen-human: {critic: {settings: {alpha: 1}}}}": "  critic: {alpha: 1}   # in tasks.pen-human",
}


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_a_recipe_of_earlier_versions_is_answered_with_the_new_line(old: str, new: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_old_keys(yaml.safe_load(old), "my.yaml")
    assert caught.value.key == "my.yaml"
    assert str(caught.value).splitlines()[1:] == [new]


def test_the_message_fits_a_screen() -> None:
    with pytest.raises(UserError, match="and 28 more") as caught:
        refuse_old_keys({"methods": {f"m{i}": {"kind": f"k{i}"} for i in range(40)}}, "my.yaml")
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "kind=iql"], "--set agent=iql"),
        (["--set", "critic.kind=cql"], "--set critic.name=cql"),
        (["--set", "critic.settings.gap=5"], "--set critic.gap=5"),
        (["--set", "critic.settings={gap: 5, alpha: 1}"], "--set critic.gap=5 --set critic.alpha=1"),
        (
            ["--set", "critic={kind: cql, gap: 5}"],
            "'kind' is a key of earlier versions; write --set \"critic={name: cql, gap: 5}\"",
        ),
        (["--grid", "critic.kind=iql,isql"], "--grid critic.name=iql,isql"),
    ],
)
def test_so_is_an_option(egd: Any, recipe: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = egd("run", recipe, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_so_are_the_settings_of_an_earlier_run(egd: Any, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "out/seed-0"
    run.mkdir(parents=True)
    tree = yaml.safe_load(recipe.read_text())
    tree["kind"] = tree.pop("agent")
    (run / "config.yaml").write_text(yaml.safe_dump({**tree, "task": "hopper-medium"}))
    result = egd("eval", run)
    assert result.exit_code == 2
    assert "agent: aepo" in result.output


def test_another_critic_keeps_the_keys_of_all_critics_and_loses_those_of_the_old_one() -> None:
    old = {"critic": {"name": "cql", "width": 8, "gap": 5}, "schedule": {"name": "edm", "rho": 7}}
    for new in ({"name": "isql", "beta": 2}, "isql"):
        critic = merge(old, {"critic": new, "schedule": {"name": "vp_linear"}}, SECTIONS)["critic"]
        assert critic == {"width": 8, "name": "isql"} | (new if isinstance(new, dict) else {})
    assert merge(old, {"schedule": {"name": "vp_linear"}}, SECTIONS)["schedule"] == {"name": "vp_linear"}
    assert merge(old, {"critic": {"alpha": 1}}, SECTIONS)["critic"] == {**old["critic"], "alpha": 1}

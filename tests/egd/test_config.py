from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, PositiveFloat

from egd.config.base import ComponentConfig, Strict, merge, override, read_yaml, to_yaml, validate
from egd.config.components import Spec
from egd.errors import UserError


class Network(Strict):
    width: int = 8
    lr: PositiveFloat = 1e-3


class Recipe(Strict):
    steps: int
    energy: ComponentConfig = ComponentConfig(name="dps")
    network: Network = Network()
    spare: Network | None = None
    budgets: dict[str, Network] | None = None
    stages: tuple[Network, ...] = ()
    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)


@pytest.mark.parametrize(
    ("base", "over", "want"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": 1}, {"a": {"b": 3}}, {"a": {"b": 3}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"e": {"name": "dps", "beta": 1}}, {"e": {"name": "first_order"}}, {"e": {"name": "first_order"}}),
        ({"e": {"name": "dps", "beta": 1}}, {"e": {"name": "dps", "x": 2}}, {"e": {"name": "dps", "beta": 1, "x": 2}}),
        ({"e": {"name": "dps", "beta": 1}}, {"e": {"beta": 2}}, {"e": {"name": "dps", "beta": 2}}),
        ({"e": {"name": "dps", "beta": 1}}, {"e": "first_order"}, {"e": "first_order"}),
        ({"e": "dps"}, {"e": {"beta": 2}}, {"e": {"name": "dps", "beta": 2}}),
        ({"e": "dps"}, {"e": {"name": "first_order"}}, {"e": {"name": "first_order"}}),
    ],
)
def test_merging_goes_deep_and_replaces_renamed_components(base: dict, over: dict, want: dict) -> None:
    before = repr(base)
    assert merge(base, over) == want
    assert repr(base) == before


def test_overrides_are_read_as_yaml_at_their_dotted_place() -> None:
    tree = {"a": {"b": 1}, "keep": 1}
    got = override(tree, ["a.b=2.5", "a.c.d=[1, x]", "flag=true", "none=", "text=a=b", "odd={a"])
    assert got == {"a": {"b": 2.5, "c": {"d": [1, "x"]}}, "keep": 1, "flag": True, "none": None, "text": "a=b", "odd": "{a"}
    assert tree == {"a": {"b": 1}, "keep": 1}


@pytest.mark.parametrize("setting", ["a.b", "=3", ""])
def test_an_override_without_a_key_and_a_value_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"'{setting}' is not of the form a.b=c")) as info:
        override({}, [setting])
    assert info.value.key == "--set"


def test_a_valid_recipe_becomes_typed() -> None:
    tree = {"steps": "3", "network": {"lr": "3e-4"}, "energy": "first_order"}
    recipe = validate(Recipe, tree, "r.yaml")
    assert (recipe.steps, recipe.network.lr, recipe.energy.spec) == (3, 3e-4, Spec("first_order", {}))
    full = validate(Recipe, {"steps": 1, "energy": {"name": "dps", "beta": 2, "x": [1]}}, "r.yaml")
    assert full.energy.spec == Spec("dps", {"beta": 2, "x": [1]})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"steps": 1, "stepps": 2}, "stepps: unknown key; did you mean 'steps'?"),
        ({"steps": 1, "network": {"widht": 2}}, "network.widht: unknown key; did you mean 'width'?"),
        ({"steps": 1, "spare": {"widht": 2}}, "spare.widht: unknown key; did you mean 'width'?"),
        ({"steps": 1, "budgets": {"quick": {"widht": 2}}}, "budgets.quick.widht: unknown key; did you mean 'width'?"),
        ({"steps": 1, "stages": [{"widht": 2}]}, "stages.0.widht: unknown key; did you mean 'width'?"),
        ({"steps": 1, "network": {"zzz": 2}}, "network.zzz: unknown key; known: lr, width"),
        ({"steps": 1, "network": {"lr": -1}}, "network.lr: got -1; input should be greater than 0"),
        ({"steps": "many"}, "steps: got 'many'; input should be a valid integer"),
        ({}, "steps: required and missing"),
        ({"steps": 1, "energy": {"beta": 1}}, "energy.name: required and missing"),
        ({"steps": 1, "energy": 5}, "energy: got 5; "),
    ],
)
def test_a_wrong_key_is_named_with_its_value_and_the_nearest_valid_one(tree: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as info:
        validate(Recipe, tree, "r.yaml")
    assert info.value.key == "r.yaml"


def test_every_wrong_key_is_listed_at_once() -> None:
    with pytest.raises(UserError) as info:
        validate(Recipe, {"stepps": 1, "network": {"lr": 0}}, "r.yaml")
    assert len(str(info.value).splitlines()) == 3


def test_a_list_of_a_wrong_item_is_not_called_too_short() -> None:
    for given, message in (([], "scales: got []; give at least 1"), ([-1], "scales.0: got -1; input should be greater than 0")):
        with pytest.raises(UserError, match=rf"^{re.escape(message)}$"):
            validate(Recipe, {"steps": 1, "scales": given}, "r.yaml")


def test_yaml_comes_back_in_its_own_order(tmp_path: Path) -> None:
    tree = {"z": 1, "a": {"y": [1, 2], "b": "ä"}, "none": None}
    (tmp_path / "r.yaml").write_text(to_yaml(tree), encoding="utf-8")
    assert list(read_yaml(tmp_path / "r.yaml")) == ["z", "a", "none"]
    assert read_yaml(tmp_path / "r.yaml") == tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2", "is not valid YAML: "),
        (b"a: \xff\xfe", "is not valid YAML: "),
        (b"- 1\n- 2", "must hold 'key: value' lines, found list"),
        (b"", "must hold 'key: value' lines, found NoneType"),
        (b"!!python/object/apply:os.mkdir [exploded]", "is not valid YAML: "),
    ],
    ids=["open bracket", "not text", "list", "empty", "code"],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_yaml(path)


def test_a_missing_recipe_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"No such file or directory; did you mean 'quickstart\.yaml'"):
        read_yaml(tmp_path / "quickstrat.yaml")
    with pytest.raises(UserError, match=r"did you mean 'quickstart\.yaml'"):
        read_yaml(Path("quickstrat.yaml"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "quickstart.yaml").rename(tmp_path / "recipes/quickstart.yaml")
    with pytest.raises(UserError, match=r"in recipes/: did you mean 'quickstart\.yaml'"):
        read_yaml(Path("quickstrat.yaml"))
    (tmp_path / ".pre-commit-config.yaml").write_text("repos: []")  # no recipe
    with pytest.raises(UserError, match=r"in recipes/: did you mean 'quickstart\.yaml'"):
        read_yaml(Path("quickstart"))
    (tmp_path / "recipes/quickstart.yaml").unlink()
    with pytest.raises(UserError, match="is the folder right"):
        read_yaml(tmp_path / "nowhere" / "quickstart.yaml")

from __future__ import annotations

import re
from pathlib import Path

import pytest

from egd.components import Registry, Spec, build, parameters, validate
from egd.energies import DPS, FirstOrder, MonteCarlo
from egd.errors import UserError, nearest

ENERGIES = Registry("energy", "egd.energies")
RULES = Registry("rule", "egd.rules")
OBJECTIVES = Registry("objective", "egd.objectives")
PARTS = {"energy": "the energy", "denoiser": "the denoiser", "posterior": "the posterior", "beta": 2.0, "unused": None}

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal

@dataclass(frozen=True)
class MyEnergy:
    denoiser: object
    beta: float = 1.0
    power: int = 2
    mode: Literal["mean", "max"] = "mean"

def my_rule(omega: float, cap: float = 3.0):
    return lambda score, slope, t: score - min(omega, cap) * slope

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (ENERGIES, {"dps", "first_order", "monte_carlo", "support_samples"}),
        (RULES, {"additive", "rescaled"}),
        (OBJECTIVES, {"analytic", "mse"}),
    ],
    ids=["energies", "rules", "objectives"],
)
def test_the_library_finds_its_components_by_itself(registry: Registry, names: set[str]) -> None:
    assert names <= set(registry.names())


@pytest.mark.parametrize("package", ["energies", "rules", "objectives", "posteriors"])
def test_names_are_in_snake_case_and_documented(package: str) -> None:
    for name, component in Registry(package, f"egd.{package}").names().items():
        assert re.fullmatch(r"[a-z]+[0-9]*(_[a-z]+[0-9]*)*", name)
        assert component.__doc__


def test_a_single_module_is_a_registry_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "egd_test_module.py").write_text("__all__ = ['HTTPServer2Go']\nclass HTTPServer2Go: ...\nclass Hidden: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(Registry("thing", "egd_test_module").names()) == {"http_server2_go"}


def test_parts_are_injected_by_name_and_a_setting_wins_over_a_part() -> None:
    assert build(ENERGIES, Spec("dps", {}), PARTS, "k") == DPS("the energy", "the denoiser", 2.0)
    assert build(ENERGIES, Spec("dps", {"beta": 5}), PARTS, "k").beta == 5.0
    made = build(ENERGIES, Spec("first_order", {"variance": False}), PARTS, "k")
    assert made == FirstOrder("the energy", "the posterior", 2.0, variance=False)


def test_numbers_that_yaml_leaves_as_text_are_read() -> None:
    made = build(ENERGIES, Spec("monte_carlo", {"beta": "3e-1", "samples": "8"}), PARTS, "k")
    assert made == MonteCarlo("the energy", "the posterior", 0.3, 8)


def test_a_strangers_class_in_a_file_builds_like_our_own(mine: str) -> None:
    made = build(ENERGIES, Spec(f"{mine}:MyEnergy", {"power": 3, "mode": "max"}), PARTS, "k")
    assert (made.denoiser, made.beta, made.power, made.mode) == ("the denoiser", 2.0, 3, "max")
    again = build(ENERGIES, Spec(f"{mine}:MyEnergy", {}), PARTS, "k")
    assert type(again) is type(made)


def test_a_function_that_returns_a_callable_is_a_component(mine: str) -> None:
    rule = build(RULES, Spec(f"{mine}:my_rule", {"cap": 2}), {"omega": 5.0}, "k")
    assert rule(10.0, 1.0, None) == 8.0


def test_a_strangers_class_in_an_installed_module_builds(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(mine).parent)
    assert build(ENERGIES, Spec("mine:MyEnergy", {}), PARTS, "k").power == 2


def test_two_files_of_one_name_are_two_modules(mine: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(MINE.replace("power: int = 2", "power: int = 9"))
    assert build(ENERGIES, Spec(f"{mine}:MyEnergy", {}), PARTS, "k").power == 2
    assert build(ENERGIES, Spec(f"{other}:MyEnergy", {}), PARTS, "k").power == 9


@pytest.mark.parametrize(
    ("name", "settings", "key", "message"),
    [
        ("first_ordr", {}, "k", "no energy is called 'first_ordr'; did you mean 'first_order'?"),
        ("zzz", {}, "k", "known: dps, first_order, monte_carlo"),
        ("monte_carlo", {"sampels": 3}, "k.sampels", "has no setting 'sampels'; did you mean 'samples'?"),
        ("monte_carlo", {"samples": 3.5}, "k.samples", "3.5 does not fit: "),
        ("monte_carlo", {"samples": "many"}, "k.samples", "'many' does not fit: "),
        (
            "support_samples",
            {},
            "k.support",
            "needs 'support', which is neither a setting given nor a part supplied here (beta, ",
        ),
        ("{mine}:MyEnergi", {}, "k", "has no 'MyEnergi'; did you mean 'MyEnergy'?"),
        ("{mine}:MyEnergy", {"mode": "min"}, "k.mode", "'min' does not fit: "),
        ("no/such/file.py:MyEnergy", {}, "k", "no such file: "),
        ("no.such.module:MyEnergy", {}, "k", "cannot import 'no.such.module'"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_nearest_name(
    mine: str, name: str, settings: dict, key: str, message: str
) -> None:
    spec = Spec(name.replace("{mine}", mine), settings)
    for check in (
        lambda: validate(ENERGIES, spec, set(PARTS), "k"),
        lambda: build(ENERGIES, spec, PARTS, "k"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as info:
            check()
        assert info.value.key == key


def test_a_component_without_settings_says_so(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("class Bare:\n    def __init__(self, beta): ...\n")
    with pytest.raises(UserError, match="it has no settings"):
        validate(ENERGIES, Spec(f"{tmp_path}/bare.py:Bare", {"x": 1}), {"beta"}, "k")


def test_validate_returns_the_component_unbuilt() -> None:
    assert validate(ENERGIES, Spec("dps", {}), set(PARTS), "k") is DPS
    assert list(parameters(DPS)) == ["energy", "denoiser", "beta"]


@pytest.mark.parametrize("path", [":MyEnergy", ".mine:MyEnergy", "..:MyEnergy"])
def test_a_path_that_is_no_module_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="cannot import"):
        ENERGIES.find(path, "k")


def test_a_file_that_fails_to_import_fails_the_same_way_twice(tmp_path: Path) -> None:
    (tmp_path / "halfway.py").write_text("import no_such_module_at_all\nclass MyEnergy: ...\n")
    for _ in range(2):
        with pytest.raises(UserError, match="no_such_module_at_all"):
            ENERGIES.find(f"{tmp_path}/halfway.py:MyEnergy", "k")


def test_what_cannot_be_called_is_no_component(mine: str) -> None:
    with pytest.raises(UserError, match="NUMBER"):
        validate(ENERGIES, Spec(f"{mine}:NUMBER", {}), set(PARTS), "k")


def test_the_nearest_name_is_offered_where_one_is_near() -> None:
    assert nearest("bta", ["beta", "omega"]) == "did you mean 'beta'?"
    assert nearest("q", ["omega", "beta"]) == "known: beta, omega"

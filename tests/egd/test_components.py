from __future__ import annotations

import re
from pathlib import Path

import pytest

from egd.config import parts
from egd.config.components import Registry, Spec, bind, build, by_path, parameters, validate, wanted_parts
from egd.config.trial import Trial
from egd.energies import DPS, FirstOrder, MonteCarlo, Sum
from egd.energies.ess_blend import EssBlend
from egd.energies.second_order import SecondOrder
from egd.errors import UserError, nearest
from egd.posteriors import MomentPosterior, Tweedie
from egd.schedules import VPLinear

ROOT = Path(__file__).parents[2]
ENERGIES = Registry("energy", "egd.energies")
RULES = Registry("rule", "egd.rules")
OBJECTIVES = Registry("objective", "egd.objectives")
POSTERIORS = Registry("posterior", "egd.posteriors")
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
    return lambda score, gradient, t: score - min(omega, cap) * gradient

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("registry", "names"),
    [
        (
            ENERGIES,
            {"dps", "ess_blend", "exact", "first_order", "mixture_fit", "monte_carlo", "second_order", "sigma_points"}
            | {"sum", "support_samples"},
        ),
        (POSTERIORS, {"exact", "posterior1", "posterior2", "residual", "tweedie"}),
        (RULES, {"additive", "rescaled"}),
        (OBJECTIVES, {"analytic", "mse"}),
    ],
    ids=["energies", "posteriors", "rules", "objectives"],
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
        ("zzz", {}, "k", "known: dps, ess_blend, exact, first_order, "),
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


FULL_PARTS = {**PARTS, "schedule": "the schedule", "support": "the support", "moments": "the moments"}


def test_a_setting_that_is_a_contract_may_be_a_component() -> None:
    nested = {"posterior": {"name": "tweedie", "covariance": "diagonal", "probes": "4"}}
    made = build(ENERGIES, Spec("second_order", nested), FULL_PARTS, "k")
    tweedie = Tweedie("the denoiser", "the schedule", "diagonal", probes=4)
    assert made == SecondOrder("the energy", tweedie, 2.0)
    assert validate(ENERGIES, Spec("second_order", nested), set(FULL_PARTS), "k") is SecondOrder


def test_a_nested_component_may_be_given_by_its_name_alone() -> None:
    made = build(ENERGIES, Spec("first_order", {"posterior": "posterior1"}), FULL_PARTS, "k")
    assert made == FirstOrder(
        "the energy", MomentPosterior("the denoiser", "the moments", "posterior1", schedule="the schedule"), 2.0
    )


def test_energies_nest_in_energies_and_posteriors_in_these() -> None:
    local = {"name": "first_order", "variance": False, "posterior": {"name": "residual", "covariance": "full"}}
    made = build(ENERGIES, Spec("ess_blend", {"local": local, "pivot": 5}), FULL_PARTS, "k")
    residual = MomentPosterior("the denoiser", "the moments", "residual", "full", "the schedule")
    inner = FirstOrder("the energy", residual, 2.0, variance=False)
    want = EssBlend("the energy", "the posterior", "the support", "the schedule", 2.0, pivot=5.0, local=inner)
    assert made == want
    assert build(ENERGIES, Spec("ess_blend", {"local": "dps"}), FULL_PARTS, "k").local == DPS("the energy", "the denoiser", 2.0)
    assert build(ENERGIES, Spec("ess_blend", {"local": None}), FULL_PARTS, "k").local is None


def test_a_list_of_components_is_a_sequence_of_them() -> None:
    terms = ["dps", {"name": "first_order", "posterior": "posterior2", "beta": 3}]
    made = build(ENERGIES, Spec("sum", {"energies": terms, "weights": [1, "5e-1"]}), FULL_PARTS, "k")
    posterior = MomentPosterior("the denoiser", "the moments", "posterior2", schedule="the schedule")
    want = (DPS("the energy", "the denoiser", 2.0), FirstOrder("the energy", posterior, 3.0))
    assert made == Sum(want, [1.0, 0.5])
    deep = {"energies": [{"name": "sum", "energies": ["dps"]}]}
    assert build(ENERGIES, Spec("sum", deep), FULL_PARTS, "k").energies[0] == Sum((want[0],))


@pytest.mark.parametrize(
    ("name", "settings", "key", "message"),
    [
        (
            "second_order",
            {"posterior": "tweedy"},
            "k.posterior",
            "no posterior is called 'tweedy'; did you mean 'tweedie'?",
        ),
        (
            "second_order",
            {"posterior": {"name": "tweedie", "covarience": "full"}},
            "k.posterior.covarience",
            "'tweedie' has no setting 'covarience'; did you mean 'covariance'?",
        ),
        (
            "second_order",
            {"posterior": {"name": "tweedie", "covariance": "ful"}},
            "k.posterior.covariance",
            "'ful' does not fit: Input should be 'trace', 'diagonal' or 'full'",
        ),
        ("second_order", {"posterior": 3}, "k.posterior", "3 is no component; write its name, or {name: ..., setting: ...}"),
        ("second_order", {"posterior": {"covariance": "full"}}, "k.posterior", "is no component; write its name"),
        ("second_order", {"posterior": {"name": "exact"}}, "k.posterior.mixture", "'exact' needs 'mixture'"),
        ("ess_blend", {"local": "dsp"}, "k.local", "no energy is called 'dsp'; did you mean 'dps'?"),
        (
            "ess_blend",
            {"local": {"name": "first_order", "posterior": "residul"}},
            "k.local.posterior",
            "did you mean 'residual'?",
        ),
        ("sum", {"energies": "dps"}, "k.energies", "'dps' is not a list of components"),
        ("sum", {"energies": ["dps", "dsp"]}, "k.energies.1", "no energy is called 'dsp'"),
        ("sum", {"energies": ["dps", {"name": "dps", "x": 1}]}, "k.energies.1.x", "'dps' has no setting 'x'"),
        ("sum", {"energies": ["dps"], "weights": ["a"]}, "k.weights", "['a'] does not fit: "),
    ],
)
def test_a_mistake_in_a_nested_component_is_named_with_its_place(name: str, settings: dict, key: str, message: str) -> None:
    spec = Spec(name, settings)
    for check in (
        lambda: validate(ENERGIES, spec, set(FULL_PARTS), "k"),
        lambda: build(ENERGIES, spec, FULL_PARTS, "k"),
        lambda: wanted_parts(ENERGIES, spec, set(FULL_PARTS), "k"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as info:
            check()
        assert info.value.key == key


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("dps", {}, {"energy", "denoiser", "beta"}),
        ("dps", {"beta": 1}, {"energy", "denoiser"}),
        ("first_order", {}, {"energy", "posterior", "beta"}),
        ("first_order", {"posterior": "residual"}, {"energy", "beta", "denoiser", "moments", "schedule"}),
        ("first_order", {"posterior": "tweedie"}, {"energy", "beta", "denoiser", "schedule"}),
        ("sum", {"energies": ["dps", {"name": "dps", "beta": 3}]}, {"energy", "denoiser", "beta"}),
        (
            "sum",
            {"energies": ["support_samples", {"name": "first_order", "posterior": "residual"}]},
            {"energy", "beta", "support", "schedule", "denoiser", "moments"},
        ),
    ],
)
def test_the_parts_that_a_component_wants_are_its_own_and_those_of_the_nested(
    name: str, settings: dict, wanted: set[str]
) -> None:
    assert wanted_parts(ENERGIES, Spec(name, settings), set(FULL_PARTS), "k") == wanted


STRANGER = """
from egd.types import Posterior, TimedEnergy

class Wrapped:
    def __init__(self, energy, posterior: Posterior | None = None, terms: dict[str, int] | None = None):
        self.posterior, self.terms = posterior, terms

def walk(denoiser, x, local: TimedEnergy = None):
    return denoiser, x, local
"""


def test_a_strangers_component_nests_ours_by_its_type_hints(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(STRANGER)
    spec = Spec(f"{tmp_path}/stranger.py:Wrapped", {"posterior": "tweedie", "terms": {"a": "1"}})
    made = build(ENERGIES, spec, FULL_PARTS, "k")
    assert made.posterior == Tweedie("the denoiser", "the schedule")
    assert made.terms == {"a": 1}


def test_a_bound_function_builds_what_is_nested_without_parts(tmp_path: Path) -> None:
    """Its parts are known only when it is called."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    path, parts = f"{tmp_path}/stranger.py:walk", {"denoiser", "x"}
    assert bind(ENERGIES, Spec(path, {}), parts, "k")(1, 2) == (1, 2, None)
    with pytest.raises(UserError, match="'dps' needs 'energy'") as info:
        bind(ENERGIES, Spec(path, {"local": "dps"}), parts, "k")
    assert info.value.key == "k.local.energy"


@pytest.mark.parametrize("value", [3, None, ["dps"], {"setting": 1}, {"name": 3}])
def test_what_is_neither_a_name_nor_a_mapping_with_one_is_no_component(value: object) -> None:
    with pytest.raises(UserError, match="is no component; write its name") as info:
        Spec.of(value, "a.b")
    assert info.value.key == "a.b"


def test_hints_that_exist_for_type_checkers_only_leave_settings_as_they_are(tmp_path: Path) -> None:
    source = "from __future__ import annotations\nclass Lazy:\n    def __init__(self, size: Missing): self.size = size\n"
    (tmp_path / "lazy.py").write_text(source)
    assert build(ENERGIES, Spec(f"{tmp_path}/lazy.py:Lazy", {"size": "3"}), {}, "k").size == "3"


def test_a_file_that_is_not_python_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __call__(self x): ...\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.py, line 2, is not Python"):
        by_path(f"{tmp_path / 'mine.py'}:Mine", "key", "egd.energies")


def test_a_file_that_is_not_there_is_no_matter_of_pythonpath() -> None:
    with pytest.raises(UserError, match="no such file") as refused:
        by_path("my_enrgy.py:SoftDPS", "k", "egd")
    assert "PYTHONPATH" not in str(refused.value)
    with pytest.raises(UserError, match="PYTHONPATH"):
        by_path("no_such_module_of_mine:SoftDPS", "k", "egd")


def test_the_table_of_parts_is_that_of_the_page_and_of_what_is_tried() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.*?) \| [^|]* \|$", page, re.MULTILINE)) == parts.PARTS
    every = parts.RATIO_PARTS | parts.RULE_PARTS | parts.WRAPPER_PARTS | parts.SAMPLER_PARTS
    assert every == set(parts.PARTS)
    assert set(Trial((2,), VPLinear()).parts) == parts.RATIO_PARTS

"""Files around the code: recipes, make targets, the pinned versions."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from egd.errors import missing
from egd.runs.bases import read_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_has_what_every_recipe_has(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe["experiment"]
    assert recipe["description"]
    assert recipe["tasks"]
    if path.stem.startswith("aepo_"):
        assert {"smoke", "quick", "full"} <= set(recipe["budgets"])


def test_make_targets_and_files_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", "docs/index.md"):
        text = (ROOT / page).read_text()
        assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
        assert [f for f in re.findall(r"recipes/\w+\.yaml|docs/\w+\.md", text) if not (ROOT / f).exists()] == []
    assert {"quickstart", "test", "test-all", "lint", "docs"} <= targets


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["rl"], *(line for line in extras["dev"] if line != "egd[rl]")]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line
    assert all("+" not in version for version in pinned.values())
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda"))]


@pytest.mark.parametrize("module", ["gymnasium", "gymnasium_robotics", "minari", "h5py", "imageio"])
def test_a_module_that_is_not_installed_is_answered_with_its_extra(module: str) -> None:
    assert "pip install 'egd[rl]'" in str(missing(ModuleNotFoundError(name=f"{module}.sub")))


def test_a_module_that_no_extra_brings_is_an_error_of_its_own() -> None:
    with pytest.raises(ModuleNotFoundError):
        missing(ModuleNotFoundError(name="my_module"))

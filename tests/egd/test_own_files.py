"""A file alone, or a function, in the place of a component: what is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from egd.config.catalogue import ENERGIES, OBJECTIVES, RULES, SAMPLERS, SCHEDULES
from egd.config.components import Registry, Spec, bind, build, validate, wanted_parts
from egd.config.trust import trusting
from egd.errors import UserError
from egd.own_files import imported

PARTS = {"energy": None, "denoiser": None, "beta": 2.0}

OWN = """from dataclasses import dataclass
from egd.energies import DPS
open("{ran}", "w").close()
def push(x, t, c=None): ...
def walk(denoiser, schedule, x, times, c): ...
@dataclass
class Mine:
    beta: float = 1.0
    def __call__(self, x, t, c=None): ...
class Learned:
    def loss(self, network, x0, x, t, c, generator): ...
class Short:
    def __call__(self, score): ...
class Heir(DPS): ...
class Grid:
    def alpha(self, t): ...
class _Hidden(Mine): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(OWN.format(ran=tmp_path / "ran"))
    (tmp_path / "empty.py").write_text("LIMIT = 3\n")
    (tmp_path / "broken.py").write_text("class Mine(:\n")
    return tmp_path


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (ENERGIES, "my.py", "'my.py' is a file; name the energy in it: my.py:Mine, my.py:Learned, my.py:Heir"),
        (ENERGIES, "./my.py:", "name the energy in it: ./my.py:Mine, "),
        (OBJECTIVES, "my.py", "name the energy in it: my.py:Learned, my.py:Heir"),
        (SCHEDULES, "my.py", "name the schedule in it: my.py:Heir, my.py:Grid"),
        (SAMPLERS, "my.py", "name the sampler in it: my.py:push, my.py:walk, my.py:Mine, "),
        (RULES, "empty.py", "write a class with __call__(self, score, grad, t) in it, and name it empty.py:NAME"),
        (ENERGIES, "broken.py", "write a class with __call__(self, x, t, c) in it, and name it broken.py:NAME"),
        (ENERGIES, "no.py", "no such file: no.py; what is in a file is named file.py:NAME"),
        (ENERGIES, "my_package.mine", "(what is in a module is named my_package.mine:NAME)"),
    ],
)
def test_a_file_alone_is_answered_with_what_is_in_it_and_is_not_run(
    own: Path, registry: Registry, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        registry.find(name, "guidance.energy")
    assert refused.value.key == "guidance.energy" and not (own / "ran").exists()
    with trusting(False), pytest.raises(UserError, match="is named") as refused:
        registry.find(name, "k")
    assert "Mine" not in str(refused.value) and "such file" not in str(refused.value)  # not even whether it is there


def test_a_function_in_the_place_of_a_class_is_told_what_a_class_needs(own: Path) -> None:
    said = "write a class with __call__(self, x, t, c), or name my.py:Mine, my.py:Learned, my.py:Heir"
    for check in (validate, build, wanted_parts):
        with pytest.raises(UserError, match=re.escape(said)) as refused:
            check(ENERGIES, Spec("my.py:push", {}), PARTS if check is build else set(PARTS), "guidance.energy")
        assert "'push' would have to make the energy, not to be it" in str(refused.value)
    with pytest.raises(UserError, match="needs 'denoiser'") as refused:
        bind(SAMPLERS, Spec("my.py:walk", {}), {"x"}, "sampler")
    assert "class" not in str(refused.value)  # a sampler is a function
    with pytest.raises(UserError, match="did you mean 'push'"):  # what the file imports is none of its own
        ENERGIES.find("my.py:pus", "k")
    with pytest.raises(UserError, match=r"known: Grid, Heir, Learned, Mine, Short, push, walk$"):
        ENERGIES.find("my.py:zzzzzz", "k")


def test_the_modules_of_ones_own_that_a_file_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "mine.py": "import numpy, os\nfrom egd.types import Energy\nfrom helper import f\nimport shelf.deep.low as low\n",
        "helper.py": "from shelf import things\nimport nowhere_to_be_found\n",
        "shelf/__init__.py": "",
        "shelf/things.py": "import mine, helper\n",  # a circle
        "shelf/deep/low.py": "",  # of a package without __init__.py
        "other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = {str(path.relative_to(tmp_path.resolve())) for path in imported(tmp_path.resolve() / "mine.py")}
    assert found == {"helper.py", "shelf/__init__.py", "shelf/things.py", "shelf/deep/low.py"}

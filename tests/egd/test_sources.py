"""Code is known by what it says, whatever it is called and wherever it lies."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from egd.config.components import by_path
from egd.networks.mlp import EnergyMLP
from egd.runs import code_digest as sources
from egd.runs.code_digest import Sources, UnknownCode

CODE = Sources("egd.runs.phases")
MODULE = '''
"""A text."""
from .factor import FACTOR

class Base:
    """{comment}"""
    def call(self, x):
        return FACTOR * x

class Mine(Base):
    weight = 1.0

class Other(Base):
    weight = 2.0

def closed(inner):
    def outer(x):
        return inner(x)
    return outer
'''

Write = Callable[..., ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a package of a user's own, of two modules, and import it as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)

    def call(factor: float, comment: str = "", place: str = "users_own") -> ModuleType:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "module.py").write_text(MODULE.format(comment=comment))
        (folder / "factor.py").write_text(f"FACTOR = {factor}\n")
        for name in [name for name in sys.modules if name.partition(".")[0] == place]:
            monkeypatch.delitem(sys.modules, name)
        for found in ("_digest", "_closure", "_installed", "_file", "_folders", "_read"):
            getattr(sources, found).cache_clear()
        importlib.invalidate_caches()
        return importlib.import_module(f"{place}.module")

    return call


def test_a_class_is_named_by_its_file_and_all_that_it_imports(write: Write) -> None:
    names = [CODE.names(write(*given).Mine) for given in ((1.0,), (1.0, "A comment."), (2.0,))]
    assert names[0] == names[1] != names[2]
    assert [name.rpartition(":")[2] for name in names[0]] == ["Base", "Mine"]


def test_its_name_is_the_same_elsewhere(write: Write) -> None:
    assert CODE.names(write(1.0).Mine) == CODE.names(write(1.0, place="moved").Mine)


def test_two_classes_of_one_file_are_two(write: Write) -> None:
    module = write(1.0)
    assert CODE.names(module.Mine()) != CODE.names(module.Other())


def test_what_lies_deep_in_an_object_is_found(write: Write) -> None:
    module = write(1.0)
    (mine,) = set(CODE.names(module.Mine)) - set(CODE.names(module.Base))

    class Holder:
        def __init__(self, thing: Any) -> None:
            self.thing = thing

        def method(self) -> None: ...

    thing = module.Mine()
    network = nn.Sequential(nn.Linear(1, 1))
    network.register_forward_hook(lambda *_: thing)
    slotted = type("Slotted", (), {"__slots__": "only"})()
    slotted.only = thing
    for held in ({"a": [thing]}, partial(print, thing), module.closed(thing.call), Holder(thing).method, network, slotted):
        assert mine in CODE.names(Holder(held))
    assert mine not in CODE.names(Holder([thing]), apart_from=(thing,))
    assert mine not in CODE.names(Holder([thing]), apart_from=(module.Base,))


def test_the_package_has_one_digest_and_short_names() -> None:
    assert "egd.networks.mlp:EnergyMLP" in CODE.names(EnergyMLP(2, 0))
    assert CODE.outside(EnergyMLP) == [name for name in CODE.names(EnergyMLP) if name.startswith("torch ")]
    assert f"torch {torch.__version__}:Module" in CODE.names(EnergyMLP)


def test_settings_name_code_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class Mine: ...\n")
    assert CODE.settings({"name": f"{path}:Mine"}) == {"name": f"{path}:Mine"}  # a text like any other until it was imported
    by_path(f"{path}:Mine", "key", "egd")
    found = CODE.settings({"energy": [{"name": f"{path}:Mine", "note": "a: b", "beta": 1.0}]})
    (first,) = found["energy"]
    assert first["name"] == CODE.names(by_path(f"{path}:Mine", "key", "egd"))[0]
    assert str(tmp_path) not in first["name"]
    assert (first["note"], first["beta"]) == ("a: b", 1.0)


def test_code_that_is_in_no_file_has_no_name() -> None:
    space: dict[str, Any] = {}
    exec("class Typed: ...", space)
    with pytest.raises(UnknownCode):
        CODE.names(space["Typed"]())

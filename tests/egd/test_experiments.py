from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from egd.errors import UserError
from egd.runs import experiment as experiments


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("toy", "json:dumps", experiments.GROUP), EntryPoint("x", "json:loads", "other")])
    monkeypatch.setattr(experiments, "entry_points", lambda group: points.select(group=group))


def test_an_installed_experiment_is_found_by_its_entry_point() -> None:
    import json

    assert list(experiments.found()) == ["toy"]
    assert experiments.load("toy", "r.yaml") is json.dumps


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "experiment: missing; known: toy"),
        ("tpy", "experiment: no experiment is called 'tpy'; did you mean 'toy'"),
        (3, "experiment: no experiment is called '3'; known: toy"),
    ],
)
def test_an_unknown_experiment_is_named_with_those_there_are(name: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        experiments.load(name, "r.yaml")
    assert info.value.key == "r.yaml"


def test_options_default_to_a_fresh_run_of_every_task() -> None:
    options = experiments.Options(out=Path("runs"))
    assert (list(options.tasks), options.resume, list(options.settings)) == ([], False, [])

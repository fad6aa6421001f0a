from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from egd.config.trust import reading
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


FILE = """
class Mine:
    caption = "numbers"
    def plan(self, recipe, options): return []
class Other:
    pass
class Asks(Mine):
    def __init__(self, size): self.size = size
"""


def test_a_class_in_a_file_is_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "mine_experiment.py"
    file.write_text(FILE)
    assert experiments.load(f"{file}:Mine", "r.yaml").plan({}, experiments.Options(out=tmp_path)) == []
    for name, message in {
        f"{file}:Other": "is no experiment: it has no 'plan'",
        f"{file}:Asks": "needs 'size'",
        f"{file}:Mein": "has no 'Mein'; did you mean 'Mine'",
        f"{file}": "name the experiment in it: .*:Mine",
        f"{tmp_path / 'none.py'}:Mine": "no such file",
        "json:dumps": "standard library",
    }.items():
        with pytest.raises(UserError, match=f"^experiment: .*{message}"):
            experiments.load(name, "r.yaml")


def test_a_strangers_file_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine_experiment.py").write_text("raise SystemExit('it was run')")
    (tmp_path / "config.yaml").write_text("")
    with (
        reading(tmp_path / "config.yaml"),
        pytest.raises(UserError, match=r"^experiment: .*mine_experiment\.py:Mine' is code.*--trust-code"),
    ):
        experiments.load(f"{tmp_path}/mine_experiment.py:Mine", "r.yaml")

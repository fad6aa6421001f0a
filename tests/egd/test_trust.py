"""Who may name code to run: recipes by hand may, run folders may not unless the code is the user's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from egd.cli import main as cli
from egd.config import trust
from egd.config.catalogue import ENERGIES, OBJECTIVES, POSTERIORS, RULES, SCHEDULES
from egd.config.components import Registry, Spec, build, by_path
from egd.errors import UserError

RECIPE = """
experiment: toy2d
tasks: [moons]
denoiser: {width: 8, blocks: 1, steps: 4, batch: 16}
calibration: {samples: 32, grid: 3}
estimators: {own: "mine.py:Mine"}
betas: [3]
sampler: {steps: 2}
evaluation: {samples: 20, reference: 40, draws: 200, projections: 4}
"""
MINE = """
from pathlib import Path
Path({canary!r}).touch()
class Mine:
    def __init__(self, energy, beta): self.energy = energy
    def __call__(self, x, t, c=None): return self.energy(x, c)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe of one's own with code of one's own, which touches ``ran``."""
    place = tmp_path / "project"
    place.mkdir()
    (place / "mine.py").write_text(MINE.format(canary=str(tmp_path / "ran")))
    (place / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return place


@pytest.fixture
def ran(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the code ran since the last question, as in a process of its own."""

    def asked() -> bool:
        before = (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink(missing_ok=True)
        for name in [name for name in list(sys.modules) if name.startswith("egd_user_mine")]:
            monkeypatch.delitem(sys.modules, name)
        return before

    return asked


def egd(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


RUN = Path("runs/moons/seed-0")


def trained(ran: Callable[[], bool]) -> None:
    done = egd("run", "tiny.yaml", "--device", "cpu", "-o", "runs")
    assert done.exit_code == 0, done.output
    assert ran()


def test_ones_own_code_is_run_for_a_run_of_ones_own_and_not_once_it_is_another(project: Path, ran: Any) -> None:
    trained(ran)
    assert egd("eval", RUN).exit_code == 0
    assert ran()
    repeated = egd("run", RUN / "config.yaml", "--device", "cpu", "-o", "again")
    assert repeated.exit_code == 0 and ran()
    assert (project / "again/moons/seed-0/code.json").exists()

    (project / "mine.py").write_text((project / "mine.py").read_text() + "# changed\n")
    refused = egd("eval", RUN)
    assert refused.exit_code == 2 and not ran()
    assert "mine.py:Mine" in refused.output and "--trust-code" in refused.output
    assert egd("eval", RUN, "--trust-code").exit_code == 0
    assert ran()


def test_a_change_of_what_ones_own_code_imports_is_a_change_of_it(
    project: Path, ran: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    (project / "helper_of_mine.py").write_text("SCALE = 1\n")
    (project / "mine.py").write_text("import helper_of_mine\n" + (project / "mine.py").read_text())
    trained(ran)
    assert egd("eval", RUN).exit_code == 0 and ran()
    (project / "helper_of_mine.py").write_text("SCALE = 2\n")
    refused = egd("eval", RUN)
    assert refused.exit_code == 2 and not ran()
    assert "mine.py:Mine" in refused.output and "--trust-code" in refused.output


def forged(project: Path, ran: Any) -> None:
    """A stranger signs with a secret of their own."""
    note = json.loads((RUN / "code.json").read_text())
    note["signature"] = trust._signature(b"s" * 32, note["code"])
    (RUN / "code.json").write_text(json.dumps(note))


def renamed(project: Path, ran: Any) -> None:
    """Another function of the same file."""
    tree = yaml.safe_load((RUN / "config.yaml").read_text())
    tree["estimators"] = {"own": "mine.py:Path"}
    (RUN / "config.yaml").write_text(yaml.safe_dump(tree))


def brought(project: Path, ran: Any) -> None:
    """The file lies in the run folder."""
    (project / "mine.py").rename(project / RUN / "mine.py")
    name = {"own": f"{RUN}/mine.py:Mine"}
    (RUN / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load((RUN / "config.yaml").read_text()) | {"estimators": name}))
    trust.record(RUN, name)  # signed, even


def outside(project: Path, ran: Any) -> None:
    """The file is beyond the project."""
    (project / "mine.py").rename(project.parent / "mine.py")
    name = {"own": "../mine.py:Mine"}
    (RUN / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load((RUN / "config.yaml").read_text()) | {"estimators": name}))
    trust.record(RUN, name)


def without(project: Path, ran: Any) -> None:
    """Of an earlier version, or from another machine."""
    (RUN / "code.json").unlink()


@pytest.mark.parametrize("attack", [forged, renamed, brought, outside, without], ids=lambda f: f.__name__)
def test_a_strangers_run_folder_runs_no_code(project: Path, ran: Any, attack: Any) -> None:
    trained(ran)
    attack(project, ran)
    for arguments in (["eval", RUN], ["run", RUN / "config.yaml", "-o", "new"]):
        refused = egd(*arguments, "--device", "cpu")
        assert refused.exit_code == 2 and not ran(), refused.output
        noticed = any(words in refused.output for words in ("was edited", "other settings than config.yaml"))
        edited = noticed and attack in (renamed, brought, outside)
        assert "--trust-code" in refused.output or edited, refused.output
    assert not (project / "new").exists()


def test_what_is_allowed_outside_stays_allowed_and_a_dataset_needs_more_than_a_recipe(tmp_path: Path) -> None:
    trust.require_trust("a.py:B", "k")  # nobody has said anything: a recipe by hand
    with pytest.raises(UserError, match="--trust-code"):
        trust.require_trust_of_data("a.py:B", "k")
    with trust.trusting(False), pytest.raises(UserError, match=r"a\.py:B") as info:
        trust.require_trust("a.py:B", "k")
    assert info.value.key == "k"
    with trust.trusting(True), trust.trusting(False, tmp_path):
        trust.require_trust("a.py:B", "k")
        trust.require_trust_of_data("a.py:B", "k")


@pytest.mark.parametrize("path", ["os:system", "subprocess:Popen", "builtins:exec", "os.path:join", "runpy:run_path"])
def test_python_itself_has_no_components(path: str) -> None:
    for registry in (ENERGIES, POSTERIORS, RULES, Registry("generator", "rl.data.generators")):
        with pytest.raises(UserError, match="standard library"):
            registry.find(path, "k")


def test_a_class_of_another_kind_is_refused_before_it_is_called(tmp_path: Path) -> None:
    source = f"""
from pathlib import Path
class Process:
    def __init__(self, args=None): Path({str(tmp_path / "ran")!r}).touch()
class Called(Process):
    def __call__(self, x): ...
def process(args=None): return 3
"""
    (tmp_path / "other.py").write_text(source)
    for registry in (ENERGIES, OBJECTIVES, POSTERIORS, RULES, SCHEDULES):
        for name in ("Process", "Called"):
            with pytest.raises(UserError, match=f"other.py:{name}' makes is no {registry.kind}"):
                build(registry, Spec(f"{tmp_path}/other.py:{name}", {"args": ["touch"]}), {}, "k")
        with pytest.raises(UserError, match=f"makes is no {registry.kind}: it is a int"):
            build(registry, Spec(f"{tmp_path}/other.py:process", {}), {}, "k")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="not a class or a function"):
        by_path("torch:add", "k", "egd.energies")


def test_the_librarys_own_may_be_named_by_their_paths_and_what_they_import_may_not() -> None:
    with trust.trusting(False):
        assert by_path("egd.energies.dps:DPS", "k", "egd.energies").__name__ == "DPS"
        assert by_path("egd.posteriors:residual", "k", "egd.posteriors").__name__ == "residual"
        for path in ("egd.energies.dps:dataclass", "egd.checkpoint:write_atomic", "torch.hub:load"):
            with pytest.raises(UserError, match="--trust-code"):
                by_path(path, "k", "egd.energies")


@pytest.mark.parametrize("registry", [ENERGIES, RULES, SCHEDULES], ids=lambda r: r.kind)
@pytest.mark.parametrize("way", ["{library}./../mine.py", "{library}.mine.py"])
def test_a_path_that_begins_as_the_librarys_own_is_a_path(project: Path, ran: Any, registry: Registry, way: str) -> None:
    place = way.format(library=registry.package)
    if not Path(place).resolve().exists():
        Path(place).write_text((project / "mine.py").read_text())
    with trust.trusting(False), pytest.raises(UserError, match="code outside the library"):
        by_path(f"{place}:Mine", "energy", registry.package)
    assert not ran()

"""Try hostile inputs under every command: run folders, recipes and results that name code or have dangerous names.

    python tools/hostile_folders.py            # all cases
    python tools/hostile_folders.py --only eval

No case may run code (which would make a file ``canary``), write outside of ``--out``, or end in a traceback. Each case states
the right exit code: 2 where an input is refused, 0 where it is harmless. Small runs are trained first, in a temporary folder.
All cases run in this process, and nothing is cached between them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from typer.testing import CliRunner

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.cli import main as cli
from egd.runs.summaries import signed

SECONDS = 100
MEMORY = 6 * 2**30
DATASET = "egd/maze2d/umaze-v0"
SMALL = {"width": 16, "steps": 5, "batch": 32}
SHARED: dict[str, Any] = {
    "experiment": "offline_rl",
    "tasks": {DATASET: {}},
    "data": {"generator": {"name": "maze2d", "map_name": "umaze", "steps": 1500, "noise": 0.5, "seed": 0}},
    "critic": {**SMALL, "layers": 2},
    "evaluation": {"episodes": 1, "envs": 1, "max_steps": 20},
    "checkpoint_every": 10,
    "log_every": 5,
}
AEPO = SHARED | {
    "agent": "aepo",
    "denoiser": {**SMALL, "blocks": 2},
    "energy_network": {**SMALL, "layers": 2},
    "calibration": {"samples": 128, "grid": 5, "every": 10},
    "guidance": {"energy": {"name": "support_samples", "samples": 4}},
    "variants": {"other": {"energy": "dps"}},
    "sampler": {"steps": 3, "spacing": "time"},
}
GENERATED = {"online": 0.5, "offline": 0.0, "generated": 0.5}
EDIS = {"name": "edis", "reach": 10, "refresh_steps": 5, "samples": 64, "energy": "cep", "sampler": {"steps": 3}}
EDIS |= {"denoiser": {**SMALL, "blocks": 2}, "ratio": SMALL, "energy_network": SMALL}
ONLINE = SHARED | {
    "agent": "iql_online",
    "actor": SMALL,
    "online": {"steps": 30, "start": 10, "refresh": 10, "batch": 16, "shares": GENERATED, "generator": EDIS},
}
TOY2D: dict[str, Any] = {
    "experiment": "toy2d",
    "tasks": ["moons"],
    "denoiser": {"width": 8, "blocks": 1, "steps": 4, "batch": 16},
    "energy_network": {"width": 8, "layers": 1, "steps": 4, "batch": 16},
    "calibration": {"samples": 32, "grid": 3},
    "estimators": {"dps": "dps"},
    "betas": [3],
    "sampler": {"steps": 2},
    "evaluation": {"samples": 20, "reference": 40, "draws": 200, "projections": 4},
}
IMAGES: dict[str, Any] = {
    "experiment": "images",
    "tasks": {"digits": {}},
    "data": {"name": "digits"},
    "targets": {"brightness": {"energy": {"name": "brightness", "target": 0.38, "width": 0.02}}},
    "estimators": {"dps": {"guidance": "dps"}},
    "unet": {"widths": [8, 8], "steps": 2, "batch": 8},
    "classifier": {"steps": 5},
    "calibration": {"samples": 32, "grid": 3},
    "steps": 2,
    "evaluation": {"samples": 10, "reference": 100, "draws": 100},
}
RUNS = {
    "aepo": (AEPO, f"{DATASET.replace('/', '-')}/seed-0"),
    "online": (ONLINE, f"{DATASET.replace('/', '-')}/seed-0"),
    "toy2d": (TOY2D, "moons/seed-0"),
    "images": (IMAGES, "digits/seed-0"),
}
KEYS: dict[str, list[str]] = {
    "aepo": [
        "agent", "critic.name", "schedule", "sampler.name", "data.generator", "guidance.energy",
        "guidance.energy=ess_blend.local",
        "guidance.posterior", "guidance.rule", "guidance.rule=interval.rule", "variants.other.energy", "variants.other.rule",
    ],
    "online": [
        "online.generator", "online.generator.energy", "online.generator.posterior", "online.generator.rule",
        "online.generator.schedule", "online.generator.sampler.name",
    ],
    "toy2d": ["schedule", "sampler.name", "posterior", "rule", "estimators.dps"],
    "images": [
        "data", "targets.brightness.energy", "estimators.dps.guidance", "estimators.dps.posterior", "estimators.dps.rule",
        "estimators.dps.clip_x0",
    ],
}  # fmt: skip
"""Settings of a run that name code; ``a=name.b`` stands for ``b`` within a component ``name`` at ``a``."""

OFTEN = ("brought", "process", "disguised")
"""Ways to name code that are tried under every command; under ``egd eval`` all ways are tried."""

EVIL = """
from pathlib import Path
Path({canary!r}).touch()
class Evil:
    def __init__(self, *args, **kwargs): Path({canary!r}).touch()
    def __call__(self, *args, **kwargs): Path({canary!r}).touch()
"""
OUTSIDE = str(Path(tempfile.gettempdir()) / "escaped-egd")
NAMES = {
    "up": "../../escaped", "root": OUTSIDE, "nul": "a\0b", "long": "n" * 300, "empty": "", "newline": "a\nb",
    "escape": "\x1b[2J", "surrogate": "\ud800", "markup": "[/red]", "markup-open": "[b]x", "mathtext": "$x_{$", "html": "<b>x",
    "formula": "=1+1", "pipe": "a|b`c`", "reserved": "NUL", "umlaut": "größe", "hidden": "_x", "backslash": "a\\",
}  # fmt: skip
REFUSED = {"up", "root", "nul", "long", "empty", "newline", "escape", "surrogate", "markup", "reserved", "backslash"}
"""Entries of ``NAMES`` that may not become the name of a folder."""


@dataclass
class Place:
    """Sandbox: trained runs, a project that is the current folder, and files that must not be touched."""

    root: Path
    results: list[tuple[str, str]] = field(default_factory=list)

    @property
    def canary(self) -> Path:
        """File that a stranger's code would make."""
        return self.root / "canary"

    @property
    def out(self) -> Path:
        """Folder that a command may write to."""
        return self.root / "project" / "out"

    def targets(self) -> dict[str, str | dict[str, Any]]:
        """Return the ways to name code."""
        touch = ["touch", str(self.canary)]
        return {
            "brought": {"name": "stranger/evil.py:Evil"},
            "project": {"name": "evil.py:Evil"},
            "absolute": {"name": str(self.root / "evil.py") + ":Evil"},
            "installed": {"name": "hostile_module:Evil"},
            "system": {"name": "os:system", "command": " ".join(touch)},
            "process": {"name": "subprocess:Popen", "args": touch},
            "imported": {"name": "egd.energies.dps:dataclass"},
            "disguised": {"name": "egd.energies./../stranger/evil.py:Evil"},
        }


@dataclass(frozen=True)
class Case:
    """Command, its right exit codes, and its preparation."""

    name: str
    arguments: list[str]
    right: set[int]
    prepare: Callable[[], None] = lambda: None
    writes: Path | None = None
    """Folder that the command may write to, besides --out."""


def main() -> None:
    """Train the runs, try all cases, and report failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS), help="kinds of runs to attack")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    place = Place(Path(tempfile.mkdtemp(prefix="hostile-")).resolve())
    try:
        count, failures = campaign(place, chosen.only, {name: RUNS[name] for name in chosen.runs})
    finally:
        if not chosen.keep:
            shutil.rmtree(place.root, ignore_errors=True)
    print(f"{count - len({name for name, _ in failures})} of {count} cases are as they should be")
    sys.exit(bool(failures))


def campaign(place: Place, only: str = "", runs: Mapping[str, Any] = RUNS) -> tuple[int, list[tuple[str, str]]]:
    """Run the cases, and return their number and (case, problem) for those that fail."""
    settle(place, runs)
    cases = [case for case in all_cases(place, runs) if only in case.name]
    failures = []
    for i, case in enumerate(cases):
        if i % 50 == 0:
            print(f"{i} of {len(cases)} tried", file=sys.stderr, flush=True)
        for problem in tried(place, case):
            print(f"{case.name}: {problem}", flush=True)
            failures.append((case.name, problem))
    return len(cases), failures


def settle(place: Place, runs: Mapping[str, Any]) -> None:
    """Make the project, its store of data, and a trained run of every kind."""
    project = place.root / "project"
    project.mkdir()
    os.chdir(project)
    os.environ |= {
        "MINARI_DATASETS_PATH": str(place.root / "minari"),
        "EGD_STORE": "",
        "XDG_CONFIG_HOME": str(place.root / "config"),
    }
    matplotlib.get_configdir()  # creates the folder now rather than in the first report
    (place.root / "victims").mkdir()
    (place.root / "victims" / "mine").write_text("of the user", encoding="utf-8")
    (place.root / "victim").write_text("of the user", encoding="utf-8")
    code = EVIL.format(canary=str(place.canary))
    (place.root / "evil.py").write_text(code, encoding="utf-8")
    (project / "evil.py").write_text(code, encoding="utf-8")
    (place.root / "hostile_module.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(place.root))
    if "report" not in {command.name for command in cli.app.registered_commands}:
        cli.add_commands()
    for name, (recipe, _) in RUNS.items():
        (project / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name in runs:
        done = invoke(["run", f"{name}.yaml", "--device", "cpu", "-o", f"trained/{name}"])
        if done.exit_code:
            raise SystemExit(f"the run '{name}' to attack is not trained: {done.output}")
    for path in project.glob("trained/**/checkpoints/*.safetensors"):  # a stranger's checkpoints are consistent
        tensors, meta = load_checkpoint(path)
        save_checkpoint(path, tensors, {key: value for key, value in meta.items() if key != "settings"})


def invoke(arguments: list[str]) -> Any:
    """Run the command as the console would, with a limit of time, and return its result."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        return CliRunner().invoke(cli.app, arguments)
    finally:
        signal.alarm(0)


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


def tried(place: Place, case: Case) -> Iterator[str]:
    """Run a case, and yield its problems."""
    shutil.rmtree(place.out, ignore_errors=True)
    case.prepare()
    before = snapshot(place, case.writes)
    for name in [name for name in sys.modules if name.startswith(("egd_user_", "hostile_module"))]:
        del sys.modules[name]
    done = invoke(case.arguments)
    if place.canary.exists():
        place.canary.unlink()
        yield "it ran code"
    if changed := sorted(snapshot(place, case.writes) ^ before):
        yield f"it touched {changed[:3]}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        last = traceback.format_exception(done.exception)[-1].strip()
        yield f"it ended in a traceback: {last[:300]}"
    elif done.exit_code not in case.right:
        yield f"it ended with {done.exit_code}, not {sorted(case.right)}: {done.output[-300:]}"
    elif "Traceback" in done.output:
        yield f"it showed a traceback: {done.output[-300:]}"
    elif case.right == {2} and len(done.output.splitlines()) > 20:
        yield f"it said more than a screen: {len(done.output.splitlines())} lines"


def snapshot(place: Place, apart_from: Path | None) -> set[str]:
    """Return all files outside of --out, with their sizes, except those of metrics, which an evaluation may extend."""
    own = [place.out, *([apart_from] if apart_from else [])]
    found = {p for p in place.root.rglob("*") if not any(map(p.is_relative_to, own)) and "__pycache__" not in p.parts}
    found |= set(Path(tempfile.gettempdir()).glob("escaped*"))
    return {f"{p} {p.lstat().st_size if p.is_file() and p.name != 'metrics.jsonl' else ''}" for p in found}


# -- cases -------------------------------------------------------------------------------------------------------------


def all_cases(place: Place, runs: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the cases: code by every key and command, file replacements, and then names."""
    for name in runs:
        for key in KEYS[name]:
            yield from code_cases(place, name, key)
        yield from file_cases(place, name)
    for label, text in NAMES.items():
        yield from name_cases(place, label, text)


def stranger(place: Place, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return the trained run as a stranger would send it, with the stranger's code beside it and a record that vouches for
    everything.
    """
    folder = place.root / "project" / "stranger"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.root / "project" / "trained" / name / RUNS[name][1], folder)
    (folder / "evil.py").write_text(EVIL.format(canary=str(place.canary)), encoding="utf-8")
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    change(tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    consistent = {key: value for key, value in summary.items() if key not in ("digest", "settings")}
    (folder / "summary.json").write_text(json.dumps(signed(consistent)), encoding="utf-8")
    names = {target["name"]: "0" * 64 for target in place.targets().values() if isinstance(target, dict)}
    (folder / "code.json").write_text(json.dumps({"code": names, "signature": "0" * 64}), encoding="utf-8")
    return folder


def code_cases(place: Place, name: str, key: str) -> Iterator[Case]:
    """Yield the cases of one key of one run: every way to name code, under every command that reads run folders."""
    for way, target in place.targets().items():
        text_only = key in ("agent", "critic.name") or key.endswith("sampler.name")
        value = target["name"] if text_only and isinstance(target, dict) else target

        def prepare(value: Any = value) -> None:
            stranger(place, name, lambda tree: put(tree, key, value))

        commands = {"eval": ["eval", "stranger", "--device", "cpu"]}
        if way in OFTEN:  # other ways differ in how code is found, not in who reads it
            commands["run"] = ["run", "stranger/config.yaml", "-o", "out"]
        if name == "aepo" and way in OFTEN:
            commands |= {
                "export": ["export", "stranger", "--to", "out/policy.pt2"],
                "select": ["select", "stranger", "--device", "cpu"],
            }
        for command, arguments in commands.items():
            yield Case(f"{command} {name} {key} {way}", arguments, {2}, prepare)
    if key in ("guidance.energy", "estimators.dps"):

        def by_hand() -> None:
            tree = copy.deepcopy(RUNS[name][0])
            put(tree, key, {"name": "os:system", "command": f"touch {place.canary}"})
            (place.root / "project" / "hand.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

        yield Case(f"run {name} {key} by hand", ["run", "hand.yaml", "-o", "out"], {2}, by_hand)
    if key == "guidance.energy":

        def unread() -> None:
            stranger(place, name, lambda tree: put(tree, key, {"name": "evil.py:Evil"}))

        yield Case(f"report {name} {key}", ["report", "stranger", "-o", "out"], {0}, unread)
        resumed = ["run", f"{name}.yaml", "-o", "stranger", "--resume", "--device", "cpu"]

        def resumed_run() -> None:
            as_out(place, name, lambda tree: put(tree, "guidance.energy", {"name": "evil.py:Evil"}))

        yield Case(f"resume {name} {key}", resumed, {0, 2}, resumed_run)


def as_out(place: Place, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Make the stranger's folder the --out of a recipe."""
    run = stranger(place, name, change)
    moved = run.with_name("moved")
    run.rename(moved)
    inside = run / RUNS[name][1]
    inside.parent.mkdir(parents=True)
    moved.rename(inside)


FILES = {
    "aepo": ["data.safetensors", "checkpoints/value.safetensors"],
    "online": ["data.safetensors"],
    "toy2d": [
        "config.yaml", "summary.json", "metrics.jsonl", "code.json", ".lock", "checkpoints", "previous", "figures",
        "figures/samples.png",
    ],
    "images": ["images.json", "pipeline"],
}  # fmt: skip
"""Entries of a run folder, in whose place a stranger may put anything."""
WAYS = ("link", "folder link", "loop", "nowhere", "pipe", "endless", "folder")


def file_cases(place: Place, name: str) -> Iterator[Case]:
    """Yield cases in which something else takes the place of a run's file, under commands that read it and one that resumes."""
    for entry in FILES[name]:
        for way in WAYS:

            def finished(entry: str = entry, way: str = way) -> None:
                spoil(place, stranger(place, name, lambda tree: None), entry, way)

            def unfinished(entry: str = entry, way: str = way) -> None:
                as_out(place, name, lambda tree: None)
                run = place.root / "project" / "stranger" / RUNS[name][1]
                if entry != "summary.json":
                    (run / "summary.json").unlink()
                spoil(place, run, entry, way)

            for command in ("eval", "export", "report") if name == "aepo" else ("eval", "report"):
                arguments = {"eval": [], "export": ["--to", "out/policy.pt2"], "report": ["-o", "out"]}[command]
                yield Case(f"{command} file {name} {entry} {way}", [command, "stranger", *arguments], {0, 2}, finished)
            resumed = ["run", f"{name}.yaml", "-o", "stranger", "--resume", "--device", "cpu"]
            yield Case(
                f"resume file {name} {entry} {way}", resumed, {0, 2}, unfinished, writes=place.root / "project" / "stranger"
            )


def spoil(place: Place, run: Path, entry: str, way: str) -> None:
    """Replace a file of a run by something else."""
    path = run / entry
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    else:
        victims = {
            "link": "victim",
            "folder link": "victims",
            "nowhere": "not-there",
            "loop": str(path),
            "endless": "/dev/zero",
        }
        path.symlink_to(place.root / victims[way])


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, within a component where the key says so."""
    *path, last = key.split(".")
    for step in path:
        part, _, component = step.partition("=")
        if component:
            tree[part] = {"name": component}
        elif isinstance(tree.get(part), str):
            tree[part] = {"name": tree[part]}
        tree = tree.setdefault(part, {})
    tree[last] = value


def name_cases(place: Place, label: str, name: str) -> Iterator[Case]:
    """Yield the cases of one name, at every place where users and strangers choose names."""
    right = {2} if label in REFUSED else {0}
    shown = {2} if label == "surrogate" else {0}  # half a pair is no text of JSON
    project = place.root / "project"

    def recipe(tree: dict[str, Any]) -> Callable[[], None]:
        return lambda: (project / "hand.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8") and None

    run = ["run", "hand.yaml", "-o", "out", "--device", "cpu"]
    yield Case(f"run estimator {label}", run, right, recipe(TOY2D | {"estimators": {name: "mse"}}))
    yield Case(f"run method {label}", [*run, "-m", "none"], {2}, recipe(AEPO | {"methods": {name: {}}}))
    yield Case(f"run variant {label}", [*run, "-t", "none"], {2}, recipe(AEPO | {"variants": {name: {}}}))
    yield Case(f"run task {label}", run, {2}, recipe(AEPO | {"tasks": {name: {}}}))
    yield Case(f"run budget {label}", [*run, "-b", name], {2} if name else {0}, recipe(TOY2D | {"description": name}))
    yield Case(f"list description {label}", ["list", "recipes", "--folder", "."], {0}, recipe(TOY2D | {"description": name}))
    yield Case(f"run component {label}", run, {2}, recipe(TOY2D | {"posterior": name}))
    yield Case(f"run grid {label}", [*run, "-g", f"omega={name}"], {2}, recipe(TOY2D))
    if "\0" not in name and label != "surrogate":
        folder = f"out/{name.lstrip('/')[:200].replace('..', '')}"
        yield Case(f"run out {label}", ["run", "toy2d.yaml", "-o", folder, "--device", "cpu"], {0}, lambda: None)

    def finished() -> None:
        folder = project / "stranger"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"task": name or "t", "method": name, "seed": 0, "x": name}), encoding="utf-8"
        )
        stats = {"mean": 1.0, "std": 1.0, "episodes": 3}
        summary = {"task": name or "t", "method": name, "seed": 0, "headline": name, "policies": {name: stats}, "device": name}
        summary |= {"remarks": [name], "seconds": {name: 1.0}, "versions": {name: name}}
        (folder / "summary.json").write_text(json.dumps(signed(summary)), encoding="utf-8")
        (folder / "metrics.jsonl").write_text(json.dumps({"phase": name, "step": 1, name: 1}) + "\n", encoding="utf-8")

    yield Case(f"report {label}", ["report", "stranger", "-o", "out", "--title", name, "--reference", "none"], shown, finished)
    yield Case(f"eval {label}", ["eval", "stranger"], {2}, finished)

    def references() -> None:
        finished()
        (project / "references.csv").write_text(
            f'source,task,method,score\n"{name}",t,"{name}",1\n', encoding="utf-8", errors="surrogatepass"
        )

    yield Case(f"references {label}", ["report", "stranger", "-o", "out", "--reference", "references.csv"], {0, 2}, references)


if __name__ == "__main__":
    main()

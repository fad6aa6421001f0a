"""Shared parts of the campaigns: small experiments, ``egd`` in processes that can be killed, and comparison of run folders.

A process here is a fork of this one, which has imported everything already: it starts in one second instead of five, and
it is killed like any other process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

DATASET = "egd/maze2d/short-v0"

OFFLINE = """
experiment: offline_rl
tasks: {egd/maze2d/short-v0: {}}
data: {generator: {name: maze2d, map_name: umaze, steps: 1500, noise: 0.5, seed: 0, dense: true}}
evaluation: {episodes: 2, envs: 2}
checkpoint_every: 10
log_every: 7
"""
CRITIC = "critic: {width: 16, layers: 2, steps: 30, batch: 32}\n"
ACTOR = "actor: {width: 16, layers: 2, steps: 30, batch: 32}\n"
DENOISER = "denoiser: {width: 16, blocks: 2, steps: 30, batch: 32}\nsampler: {steps: 3, spacing: time}\n"
ENERGY = "energy_network: {width: 16, layers: 2, steps: 30, batch: 32}\n"
CALIBRATION = "calibration: {samples: 64, grid: 4, every: 10}\n"
VALUED = OFFLINE + CRITIC + DENOISER + CALIBRATION
TRAINED = "guidance: {energy: analytic, beta: 3}\n"
ONLINE = """
online:
  steps: 60
  start: 20
  refresh: 20
  batch: 16
  lr: 1.0e-3
  shares: {online: 0.5, offline: 0.0, generated: 0.5}
  generator:
    name: edis
    reach: 10
    refresh_steps: 5
    samples: 64
    denoiser: {width: 16, blocks: 2, steps: 20, batch: 32}
    sampler: {steps: 3}
    ratio: {steps: 5, width: 16, batch: 32}
    energy: cep
    energy_network: {steps: 5, width: 16, batch: 32}
"""
TOY2D = """
experiment: toy2d
tasks: [moons]
denoiser: {width: 16, blocks: 1, steps: 30, batch: 32}
calibration: {samples: 64, grid: 4}
energy_network: {width: 16, layers: 1, steps: 20, batch: 32}
estimators: {dps: dps, learned: mse, efm: {name: energy_weights, clip: 5.0}}
betas: [0, 3]
sampler: {steps: 3}
evaluation: {samples: 50, reference: 200, draws: 2000, projections: 8}
checkpoint_every: 10
log_every: 10
"""
DIGITS = """
experiment: images
tasks: {digits: {}}
steps: 3
unet: {widths: [8, 8], steps: 6, batch: 8}
classifier: {width: 4, steps: 6, batch: 8}
calibration: {samples: 16, grid: 3}
targets: {class: {energy: class_probability, betas: [1]}, inpainting: {energy: {name: inpainting, hide: top}}}
estimators: {dps: {guidance: dps}}
evaluation: {samples: 10, reference: 20, draws: 50, projections: 8}
checkpoint_every: 3
log_every: 2
"""
DIFFUSER = """
plan: {horizon: 8}
denoiser: {width: 8, blocks: 2, steps: 30, batch: 16}
reward: {width: 16, layers: 2, steps: 30, batch: 16}
energy_network: {width: 8, layers: 2, steps: 30, batch: 16}
calibration: {samples: 64, grid: 4}
sampler: {steps: 1}
"""


@dataclass(frozen=True)
class Case:
    """Recipe and the way it is run; with ``stored``, finished phases are taken from a store and put there."""

    name: str
    recipe: str
    arguments: tuple[str, ...] = ()
    command: str = "run"
    stored: bool = False


def cases() -> list[Case]:
    """Return the cases: all experiments, every agent, several runs at once, and sweeps with a store."""

    def offline(agent: str, text: str, *arguments: str, name: str = "", **settings: Any) -> Case:
        return Case(name or agent, f"{text}agent: {agent}\n", arguments, **settings)

    support = "support: {actions: 2}\nselection: {candidates: 2}\n"
    diffusion = OFFLINE + CRITIC + DENOISER + "acting: {candidates: 2}\n"
    cql = OFFLINE + "critic: {width: 16, layers: 2, steps: 30, batch: 32, actions: 2, policy_width: 16}\n"
    cal_ql = cql.replace("actions", "name: cal_ql, actions")
    guided = VALUED + ENERGY + TRAINED
    grid = ("--seeds", "0,1", "--grid", "guidance.beta=1,3")
    return [
        offline("aepo", guided, "--set", "evaluation.every=15"),
        offline("aepo", guided + "training: joint\n", name="aepo, joint"),
        offline("aepo", guided, "--seeds", "0-2", name="aepo, 3 seeds"),
        offline("aepo", guided, *grid, name="aepo, grid, store", stored=True),
        offline("aepo", guided, *grid, name="sweep, store", command="sweep", stored=True),
        offline("qgpo", VALUED + ENERGY + "support: {actions: 2}\nguidance: {energy: cep, clip_x0: false}\n"),
        offline("idql", VALUED + support.partition("\n")[2]),
        offline("sfbc", VALUED + support.partition("\n")[2]),
        offline("qipo", VALUED + "support: {actions: 2}\npolicy: {steps: 15, batch: 8, rounds: 2}\n"),
        offline("diffusion_bc", OFFLINE + DENOISER),
        offline("diffusion_ql", diffusion),
        offline("edp", diffusion + "improvement: {extraction: awr}\n"),
        offline("srpo", OFFLINE + CRITIC + DENOISER + ACTOR),
        offline("diffuser", OFFLINE + CRITIC + DIFFUSER),
        offline("iql", OFFLINE + CRITIC + ACTOR),
        offline("td3_bc", OFFLINE + CRITIC + ACTOR),
        offline("cql", cql),
        offline("bc", OFFLINE + ACTOR),
        offline("iql_online", OFFLINE + CRITIC + ACTOR + ONLINE),
        offline("cal_ql", cal_ql + ONLINE),
        Case("toy2d", TOY2D),
        Case("digits", DIGITS),
    ]


MODULES = (
    "torch._dynamo",
    "egd.experiments.images.job",
    "egd.report.page",
    "egd.experiments.toy2d.job",
    "rl.deploy.export",
    "rl.evaluation.figures",
    "rl.runs.experiment",
    "rl.evaluation.offline_selection",
)


def prepare(work: Path) -> None:
    """Import everything that a run needs, and register a task with short episodes whose data lie below ``work``."""
    os.environ["MINARI_DATASETS_PATH"] = str(work / "minari")
    (work / "minari").mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        import_module(name)
    from rl.envs.making import register
    from rl.tasks import TASKS, find_task

    _draw_once(work / "warm.png")
    register()
    dense = find_task("maze2d-umaze-dense").env_kwargs
    TASKS["short"] = replace(
        find_task("egd/maze2d/umaze-v0"), name=DATASET, datasets=(DATASET,), max_steps=20, env_kwargs=dense
    )
    torch.set_num_threads(1)


def _draw_once(path: Path) -> None:
    """Draw a figure, because the first one of a process takes a second to load its fonts."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    figure.subplots().plot([0, 1])
    figure.savefig(path)


# -- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crash:
    """Crash of a process at its ``number``-th operation of a kind.

    ``when`` is ``half``, when half of a file is written, or ``before`` or ``after`` a finished file takes its place.
    """

    when: str
    number: int


@dataclass
class Process:
    """Process that runs the command line."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that ended the process; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 600.0) -> int:
        """Return the exit status once the process has ended; one that hangs is killed and counts as failed."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        if self.code is None:
            self.send(signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        """Return everything that the process printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(
    arguments: list[str], log: Path, environment: Mapping[str, str], *, crash: Crash | None = None, ops: Path | None = None
) -> Process:
    """Start ``egd`` with these arguments, and return its process; its file operations are listed in the file
    ``ops``, if given.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, log)
    code = 70
    try:
        code = _child(arguments, log, environment, crash, ops)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _child(arguments: list[str], log: Path, environment: Mapping[str, str], crash: Crash | None, ops: Path | None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(to, 1)
    os.dup2(to, 2)
    os.environ.update(environment)
    os.environ["COLUMNS"] = "160"
    _watch_files(crash, ops)
    from egd.cli import main as cli

    sys.argv = ["egd", *arguments]
    try:
        cli.entry()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _watch_files(crash: Crash | None, ops: Path | None) -> None:
    replaced, synced, count = os.replace, os.fsync, {"half": 0, "replace": 0}

    def note(kind: str, target: Any) -> bool:
        count[kind] += 1
        if ops is not None:
            with ops.open("a", encoding="utf-8") as file:
                file.write(f"{kind} {target}\n")
        return crash is not None and count[kind] == crash.number

    def watched_replace(source: Any, target: Any) -> None:
        now = note("replace", target)
        if now and crash is not None and crash.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replaced(source, target)
        if now and crash is not None and crash.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_fsync(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}")
        now = path.is_file() and note("half", path.resolve())
        if now and crash is not None and crash.when == "half":
            os.ftruncate(number, os.fstat(number).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        synced(number)

    os.replace, os.fsync = watched_replace, watched_fsync  # type: ignore[assignment]


# -- what a folder of runs holds -------------------------------------------------------------------------------------

TIMES = {"seconds", "action_ms", "device", "versions", "reused", "digest"}
"""Entries of a summary that are no results."""


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def checkpoints(folder: Path) -> Iterator[Path]:
    """Yield the last checkpoint of every phase, and networks that are written at the end."""
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name != "previous":  # its step depends on when a run was killed
            yield path


def results(summary: Path) -> Any:
    """Return the results of a run: its summary without times and versions."""
    return _without_times(json.loads(summary.read_text(encoding="utf-8")))


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_times(value) for key, value in tree.items() if key not in TIMES}
    return [_without_times(value) for value in tree] if isinstance(tree, list) else tree


def differences(reference: Path, other: Path) -> list[str]:
    """Return the differences, bit for bit, of two folders of runs: tensors, metrics, summaries, and files left behind."""
    found: list[str] = []

    def compare(kind: str, one: Mapping[Path, Any], two: Mapping[Path, Any], same: Callable[[Path, Path], bool]) -> None:
        found.extend(f"{kind} {path} is in one alone" for path in one.keys() ^ two.keys())
        found.extend(f"{kind} {path} differs" for path in one.keys() & two.keys() if not same(one[path], two[path]))

    def below(root: Path, paths: Iterator[Path]) -> dict[Path, Path]:
        return {path.relative_to(root): path for path in paths}

    compare("tensors", below(reference, checkpoints(reference)), below(other, checkpoints(other)), same_tensors)
    for name, same in (("summary.json", same_results), ("metrics.jsonl", same_bytes), ("config.yaml", same_bytes)):
        compare(name, below(reference, reference.rglob(name)), below(other, other.rglob(name)), same)
    left = [path for path in other.rglob("*") if path.name.startswith((".part", ".lock"))]
    return found + [f"{path} was left behind" for path in left]


def same_tensors(one: Path, other: Path) -> bool:
    """Return whether two files agree in names, shapes, types and every bit of their tensors."""
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(_identical(a[name], b[name]) for name in a)


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


def same_results(one: Path, other: Path) -> bool:
    """Return whether two summaries have the same results."""
    return bool(results(one) == results(other))


def same_bytes(one: Path, other: Path) -> bool:
    """Return whether two files have the same content."""
    return one.read_bytes() == other.read_bytes()

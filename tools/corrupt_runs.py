"""Damage every file of a run, and of the store, in more than twenty ways, and check how each command reacts.

    python tools/corrupt_runs.py --seed 0 --jobs 2

Every file gets every fault of its kind once, and is read by a command drawn at random: resuming an unfinished run, showing a
finished one, ``eval``, ``report``, ``select``, acting with the trained policy, or a run that takes phases from the store. Where
a digest guards a file, faults of its content come with a new digest, so that further checks are tested, too. The outcome must
be the result of the sound run, or a message. Exit code 1 where a result is silently different or a traceback is shown.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import yaml
from campaign import Case, Crash, cases, checkpoints, prepare, results, same_tensors, start

Fault = Callable[[bytes, random.Random, "Place"], bytes | None]
"""Maps a file's bytes to damaged ones, or to None if the file is to be deleted."""

SELECT = ("--states", "8", "--actions", "4", "--device", "cpu")
OUTCOMES = ("same", "recovered, and said", "refused, and said", "SILENTLY WRONG", "TRACEBACK")
COMMANDS = ("show", "eval", "report", "select", "act")
SEED0, SEED1 = "out/egd-maze2d-short-v0/seed-0", "out/egd-maze2d-short-v0/seed-1"


@dataclass(frozen=True)
class Place:
    """File to be damaged, with the files that could be mistaken for it."""

    path: Path
    folder: Path

    def of_other_seed(self) -> bytes:
        """Return the content of the same file in the run of another seed."""
        other = Path(str(self.path).replace("/seed-0/", "/seed-1/"))
        return other.read_bytes() if other.exists() else b""

    def neighbour(self) -> bytes:
        """Return the content of another file of the same kind in the same folder."""
        beside = [p for p in sorted(self.path.parent.glob(f"*{self.path.suffix}")) if p != self.path]
        return beside[0].read_bytes() if beside else b""


def _flipped(content: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[min(at, len(changed) - 1)] ^= 1 << bit
    return bytes(changed)


ANY: dict[str, Fault] = {
    "emptied": lambda b, r, p: b"",
    "cut to half": lambda b, r, p: b[: len(b) // 2],
    "last byte lost": lambda b, r, p: b[:-1],
    "first byte lost": lambda b, r, p: b[1:],
    "a bit of the header": lambda b, r, p: _flipped(b, r.randrange(min(64, len(b) or 1)), r.randrange(8)),
    "a bit of the middle": lambda b, r, p: _flipped(b, len(b) // 2 + r.randrange(32), r.randrange(8)),
    "a bit of the end": lambda b, r, p: _flipped(b, len(b) - 1 - r.randrange(min(64, len(b) or 1)), r.randrange(8)),
    "a bit anywhere": lambda b, r, p: _flipped(b, r.randrange(len(b) or 1), r.randrange(8)),
    "deleted": lambda b, r, p: None,
    "garbage behind": lambda b, r, p: b + r.randbytes(37),
    "NULs behind": lambda b, r, p: b + bytes(64),
    "all NULs": lambda b, r, p: bytes(len(b)),
    "random bytes": lambda b, r, p: r.randbytes(len(b)),
    "twice": lambda b, r, p: b + b,
    "that of another seed": lambda b, r, p: p.of_other_seed(),
    "a neighbour's": lambda b, r, p: p.neighbour(),
    "brackets": lambda b, r, p: b"[" * 5000,
}
TEXT: dict[str, Fault] = {
    "UTF-16": lambda b, r, p: b.decode().encode("utf-16"),
    "a byte that is no UTF-8": lambda b, r, p: b[: len(b) // 2] + b"\xff" + b[len(b) // 2 :],
    "a line lost": lambda b, r, p: b"".join(_without(b.splitlines(keepends=True), r)),
    "lines in another order": lambda b, r, p: b"".join(reversed(b.splitlines(keepends=True))),
    "a digit changed": lambda b, r, p: re.sub(rb"\d(?=[^\d]*$)", b"7", re.sub(rb"(\d)\.(\d)", rb"\2.\1", b, count=1)),
}


def _without(lines: list[bytes], r: random.Random) -> list[bytes]:
    gone = r.randrange(len(lines) or 1)
    return [line for i, line in enumerate(lines) if i != gone]


def _tensors(change: Callable[[dict[str, torch.Tensor], dict[str, Any], random.Random], None]) -> Fault:
    """Return a fault that changes a checkpoint's content and renews its digest."""

    def fault(content: bytes, r: random.Random, place: Place) -> bytes:
        from egd.checkpoint import as_bytes, load_checkpoint

        tensors, meta = load_checkpoint(place.path)
        change(tensors, meta, r)
        return as_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, meta)

    return fault


def _weight(tensors: Mapping[str, torch.Tensor], r: random.Random) -> str:
    names = [n for n, t in sorted(tensors.items()) if t.is_floating_point() and t.numel() > 1 and n.startswith("learner")]
    return r.choice(names or [n for n, t in sorted(tensors.items()) if t.is_floating_point()] or sorted(tensors))


def _put(f: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def change(tensors: dict[str, torch.Tensor], meta: dict[str, Any], r: random.Random) -> None:
        name = _weight(tensors, r)
        tensors[name] = f(tensors[name].clone())

    return _tensors(change)


def _meta(**values: Any) -> Fault:
    return _tensors(lambda tensors, meta, r: meta.update(values))


def _filled(t: torch.Tensor, value: float) -> torch.Tensor:
    return t.float().index_fill(0, torch.tensor([0]), value) if t.ndim else torch.tensor(value)


def _drop(tensors: dict[str, torch.Tensor], meta: dict[str, Any], r: random.Random) -> None:
    del tensors[_weight(tensors, r)]


def _foreign(tensors: dict[str, torch.Tensor], meta: dict[str, Any], r: random.Random) -> None:
    tensors["learner.foreign"] = torch.ones(3)


def _generator(tensors: dict[str, torch.Tensor], meta: dict[str, Any], r: random.Random) -> None:
    tensors["generator"] = torch.zeros(7, dtype=torch.uint8)


CHECKPOINT: dict[str, Fault] = {
    "NaN in a tensor": _put(lambda t: _filled(t, float("nan"))),
    "infinity in a tensor": _put(lambda t: _filled(t, float("inf"))),
    "another shape": _put(lambda t: t.reshape(-1)[:-1]),
    "float16": _put(lambda t: t.half()),
    "float64": _put(lambda t: t.double()),
    "integers": _put(lambda t: t.long()),
    "a tensor lost": _tensors(_drop),
    "a foreign tensor": _tensors(_foreign),
    "another generator state": _tensors(_generator),
    "a negative step": _meta(step=-3),
    "a step beyond the end": _meta(step=10**9),
    "a step that is text": _meta(step="ten"),
    "negative rows": _meta(rows=-1, metrics_size=-1),
    "notes that are none": _meta(notes=[{"step": "?"}]),
    "seconds that are text": _meta(seconds="long"),
}


def _json(change: Callable[[dict[str, Any]], None], **dump: Any) -> Fault:
    """Return a fault that changes a summary's content and renews its digest."""

    def fault(content: bytes, r: random.Random, place: Place) -> bytes:
        from egd.runs.summaries import digest

        tree = json.loads(content)
        had = tree.pop("digest", None)
        change(tree)
        return json.dumps(tree | ({"digest": digest(tree)} if had else {})).encode()

    return fault


def _policy(tree: dict[str, Any], **values: Any) -> None:
    next(iter(tree["policies"].values())).update(values)


SUMMARY: dict[str, Fault] = {
    "a score that is NaN": _json(lambda t: _policy(t, mean=float("nan"))),
    "a score that is text": _json(lambda t: _policy(t, mean="high")),
    "another mean": _json(lambda t: _policy(t, mean=99.0)),
    "negative episodes": _json(lambda t: _policy(t, episodes=-1)),
    "no policies": _json(lambda t: t.pop("policies")),
    "another headline": _json(lambda t: t.update(headline="none")),
    "another seed": _json(lambda t: t.update(seed=1)),
    "another task": _json(lambda t: t.update(task="hopper-medium")),
    "a seed that is text": _json(lambda t: t.update(seed="0")),
    "null": lambda b, r, p: b"null",
    "no digest": lambda b, r, p: json.dumps({k: v for k, v in json.loads(b).items() if k != "digest"}).encode(),
}


def _yaml(**values: Any) -> Fault:
    def fault(content: bytes, r: random.Random, place: Place) -> bytes:
        return yaml.safe_dump(yaml.safe_load(content) | values).encode()

    return fault


CONFIG: dict[str, Fault] = {
    "an unknown key": _yaml(nonsense=1),
    "another seed": _yaml(seed=1),
    "another agent": _yaml(agent="bc"),
    "another critic": _yaml(critic={"width": 16, "layers": 2, "steps": 30, "batch": 32, "lr": 0.5}),
    "NaN": lambda b, r, p: b.replace(b"lr: 0.0003", b"lr: .nan"),
    "a list": lambda b, r, p: b"- 1\n- 2\n",
    "anchors": lambda b, r, p: b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n" + b,
    "a tag": lambda b, r, p: b"x: !!python/object/apply:os.getpid []\n" + b,
}


def faults_of(path: Path) -> dict[str, Fault]:
    """Return the faults that a file of this kind can have."""
    found = dict(ANY)
    if path.suffix in (".json", ".jsonl", ".yaml"):
        found |= TEXT
    if path.suffix == ".safetensors" and "pipeline" not in path.parts:
        found |= CHECKPOINT
    if path.name == "summary.json":
        found |= SUMMARY
    if path.name == "config.yaml":
        found |= CONFIG
    return found


# -- commands ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """Outcome of a command: exit code, output and result."""

    code: int
    said: str
    result: Any


def case() -> Case:
    """Return the case that is damaged: AEPO with a trained energy, run with two seeds."""
    (found,) = (c for c in cases() if c.name == "aepo")
    return found


def run_line(folder: Path, *more: str, out: str = "out") -> list[str]:
    """Return the command line that runs two seeds."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(case().recipe, encoding="utf-8")
    return ["run", str(recipe), "--out", str(folder / out), "--seeds", "0,1", "--device", "cpu", *case().arguments, *more]


def perform(command: str, folder: Path) -> Ran:
    """Run the command, and return its outcome."""
    runs, seed0, log = folder / "out", folder / SEED0, folder / f"log-{time.monotonic_ns()}"
    store = {"EGD_STORE": str(folder / "store") if command == "from the store" else ""}
    lines = {
        "resume": run_line(folder, "--resume"),
        "show": run_line(folder, "--resume"),
        "from the store": run_line(folder, out="new"),
        "eval": ["eval", str(seed0), "--device", "cpu"],
        "report": ["report", str(runs), "--out", str(folder / "report"), "--figure", "metrics"],
        "select": ["select", str(runs), *SELECT, "--json", str(folder / "select.json")],
        "act": ["act", str(seed0)],
    }
    process = start(lines[command], log, store)
    code = process.wait(300)
    if command in ("resume", "show", "from the store"):
        place = folder / ("new" if command == "from the store" else "out")
        found: Any = {p.parent.name: p.parent for p in sorted(place.rglob("summary.json"))}
    elif command == "report":
        found = _scores(runs)
    elif command == "select":
        found = _read_json(folder / "select.json")
    else:
        found = [line for line in process.said().splitlines() if "│" in line or line.startswith("actions")]
    return Ran(code, process.said(), found)


def _scores(runs: Path) -> dict[str, Any]:
    """Return the scores that a report reads."""
    from egd.errors import UserError
    from egd.report.runs import find

    try:
        return {run.path.name: run.summary.policies for run in find([runs]).runs}
    except UserError:
        return {}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else None


def same(command: str, ran: Ran, sound: Mapping[str, Any], damaged: Path) -> bool:
    """Return whether the result is that of the sound runs, or, where the command leaves the damaged run out, that of the other
    run.

    Showing a finished run reads no checkpoint, so that a ``damaged`` one may stay as it is.
    """
    if command in ("resume", "show", "from the store"):
        reference = {name: path for name, path in sound[command].items() if name in ran.result}
        wanted = {"seed-0", "seed-1"} if not ran.code else set() if command == "from the store" else {"seed-1"}
        unread = damaged if command == "show" else None
        lost = set(re.findall(r"lost the rows of phase '(\w+)'", " ".join(ran.said.split())))
        return wanted <= ran.result.keys() and all(
            _same_run(path, ran.result[name], unread, lost) for name, path in reference.items()
        )
    if command == "select" and (ran.code or "not used" in ran.said):
        return ran.result is None or ran.result == sound["select alone"]
    if command == "report":
        left = set(ran.result) if ran.code else {"seed-0", "seed-1"}
        return bool(
            ran.result == {name: scores for name, scores in sound["report"].items() if name in left} and "seed-1" in left
        )
    if ran.code:
        return True  # the command gave no result
    return bool(ran.result == sound[command])


def _same_run(one: Path, other: Path, unread: Path | None, lost: Collection[str]) -> bool:
    try:
        if _found(one, lost) != _found(other, lost):
            return one.name == "seed-0" and "out" in other.parts and not _readable(other)
    except ValueError:
        return True  # the summary is still damaged, and was refused
    pairs = [(p, other / p.relative_to(one)) for p in checkpoints(one)]
    return all(q == unread or not q.exists() or _same_or_damaged(p, q) for p, q in pairs)


def _found(run: Path, lost: Collection[str]) -> Any:
    """Return what a run's summary found, without the quantities that it takes from ``lost`` rows of the metrics."""
    found = results(run / "summary.json")
    return found | {"vitals": {name: value for name, value in found.get("vitals", {}).items() if name not in lost}}


def _readable(run: Path) -> bool:
    from egd.errors import UserError
    from egd.runs.folder import RunFolder
    from egd.runs.summaries import Summary

    try:
        RunFolder(run).read_summary(Summary)
    except UserError:
        return False
    return True


def _same_or_damaged(one: Path, other: Path) -> bool:
    from egd.errors import UserError
    from egd.runs.phase_files import load_phase

    try:
        load_phase(other)
        return same_tensors(one, other)
    except (UserError, ValueError, OSError):
        return True  # every reader refuses it


def act(arguments: list[str]) -> None:
    """Run ``egd act RUN``, a command of this campaign alone: print the trained policy's actions in two states."""
    from egd.cli.terminal import user_errors
    from rl.deploy.module import load_module

    with user_errors():
        module = load_module(arguments[0])
        agent = module.agent
        chosen = agent.acting(0)(agent.data.transitions.state[:2], torch.zeros(2, dtype=torch.long))
        print("actions", chosen.tolist())


# -- the campaign ------------------------------------------------------------------------------------------------------

WORK: list[Path] = []
SOUND: dict[str, Any] = {}


@dataclass(frozen=True)
class Task:
    """One trial: a file of a folder in a state (``complete``, ``unfinished`` or ``stored``), a fault, and a command."""

    state: str
    path: str
    fault: str
    command: str
    number: int


def trial(task: Task) -> tuple[Task, str, str]:
    """Apply one fault, and return the task, its outcome and the end of the output."""
    folder = WORK[0] / f"trial-{task.number}"
    shutil.copytree(WORK[0] / task.state, folder)
    path, chance = folder / task.path, random.Random(task.number)
    content = faults_of(path)[task.fault](path.read_bytes(), chance, Place(path, folder))
    path.unlink() if content is None else path.write_bytes(content)
    ran = perform(task.command, folder)
    outcome = _outcome(task, ran, folder)
    if outcome in OUTCOMES[:3]:
        shutil.rmtree(folder)
    return task, outcome, ran.said[-1500:]


def _outcome(task: Task, ran: Ran, folder: Path) -> str:
    if "Traceback (most recent call last)" in ran.said or ran.code not in (0, 2):
        return "TRACEBACK"
    if not same(task.command, ran, SOUND, folder / task.path):
        return "SILENTLY WRONG"
    if ran.code:
        return "refused, and said"
    said = re.search(r"damaged|previous|anew|trained again|is not a checkpoint|metrics|not used", ran.said)
    return "recovered, and said" if said else "same"


def tasks(seed: int, work: Path, limit: int, only: str = "") -> list[Task]:
    """Return every file with every fault of its kind and a command drawn at random; at most ``limit`` of them, drawn at random,
    if not 0.
    """
    chance, found = random.Random(seed), []
    for state in ("complete", "unfinished", "stored"):
        root = work / state
        below = root / ("store" if state == "stored" else SEED0)
        files = [p for p in sorted(below.rglob("*")) if p.is_file() and not p.name.startswith((".lock", ".part"))]
        for path in files:
            for name in faults_of(path):
                commands = {"complete": COMMANDS, "unfinished": ("resume",), "stored": ("from the store",)}[state]
                found.append((state, str(path.relative_to(root)), name, chance.choice(commands)))
    chosen = chance.sample(found, min(limit, len(found))) if limit else found
    numbered = [Task(*one, number=1_000_000 * seed + i) for i, one in enumerate(chosen)]
    return [task for task in numbered if only in f"{task.path} {task.fault}"]


def references(work: Path) -> None:
    """Make the sound folders in their three states, and record the result of each command on them."""
    complete, stored, unfinished = work / "complete", work / "stored", work / "unfinished"
    made = start(run_line(complete), work / "log", {"EGD_STORE": str(complete / "store")}, ops=work / "ops")
    assert made.wait() == 0, made.said()
    ops = [op for op in work.joinpath("ops").read_text(encoding="utf-8").splitlines() if op.startswith("replace")]
    first = f"{SEED0}/checkpoints/energy"  # a phase with steps left and an earlier checkpoint
    number = [i + 1 for i, op in enumerate(ops) if first in op][1]
    stored.mkdir()
    shutil.move(complete / "store", stored / "store")
    store = {"EGD_STORE": str(unfinished / "store")}  # with a store, as when the operations were counted
    cut = start(run_line(unfinished), work / "log", store, crash=Crash("after", number))
    assert cut.wait() == -signal.SIGKILL, cut.said()
    assert not [*unfinished.rglob("summary.json")], "it is finished"
    shutil.rmtree(unfinished / "store")
    for name in COMMANDS:
        SOUND[name] = _sound(name, work, complete)
    SOUND["resume"] = SOUND["from the store"] = SOUND["show"]
    alone = work / "sound-alone"
    shutil.copytree(complete, alone)
    shutil.rmtree(alone / SEED0)
    SOUND["select alone"] = perform("select", alone).result


def _sound(name: str, work: Path, complete: Path) -> Any:
    folder = work / f"sound-{name}"
    shutil.copytree(complete, folder)
    ran = perform(name, folder)
    assert ran.code == 0, ran.said
    return ran.result


def main() -> int:
    """Run the campaign, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=0, help="so many faults drawn at random; 0: every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin none after so many")
    parser.add_argument("--only", default="", help="cases whose file and fault contain this text")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    work = (options.work or Path(tempfile.mkdtemp(prefix="egd-faults-"))).resolve()
    WORK.append(work)
    prepare(work)
    _offer_act()
    began, outcomes, context = time.monotonic(), Counter[tuple[str, str]](), multiprocessing.get_context("fork")
    references(work)
    chosen = tasks(options.seed, work, options.cases, options.only)
    with context.Pool(options.jobs) as pool:
        for task, outcome, said in pool.imap_unordered(trial, chosen):
            outcomes[f"{task.state}: {Path(task.path).name}", outcome] += 1
            print(f"\r{outcomes.total()} of {len(chosen)}", end="", file=sys.stderr, flush=True)
            if outcome not in OUTCOMES[:3]:
                print(f"\n{outcome}: {task}\n{said}", flush=True)
            if time.monotonic() - began > 60 * options.minutes:
                pool.terminate()
                break
    table(outcomes)
    print(f"{outcomes.total()} faults of {len(chosen)}, {time.monotonic() - began:.0f} s")
    bad = sum(count for (_, outcome), count in outcomes.items() if outcome not in OUTCOMES[:3])
    if not bad and options.work is None:
        shutil.rmtree(work)
    return 1 if bad else 0


def _offer_act() -> None:
    from egd.cli import main as cli

    @cli.app.command("act", hidden=True)
    def command(run: Path) -> None:
        act([str(run)])


def table(outcomes: Mapping[tuple[str, str], int]) -> None:
    """Print the counts of outcomes by file."""
    writer = csv.writer(sys.stdout, delimiter="|")
    writer.writerow(["file", *OUTCOMES])
    for name in sorted({name for name, _ in outcomes}):
        writer.writerow([name, *(outcomes.get((name, outcome), 0) for outcome in OUTCOMES)])
    writer.writerow(["all", *(sum(n for (_, o), n in outcomes.items() if o == outcome) for outcome in OUTCOMES)])


if __name__ == "__main__":
    raise SystemExit(main())

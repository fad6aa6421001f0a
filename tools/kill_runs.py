"""Kill runs of every experiment at random moments, resume them, and compare them with runs that were never killed.

    python tools/kill_runs.py --kills 200 --seed 0 --jobs 2

Runs are killed (SIGKILL) at any moment, several times in a row, in their evaluation, when half of a file is written, before
and after a finished file takes its place, and in writes to the store; or they are asked to end (SIGTERM). Every tensor of every
checkpoint, the metrics and the scores must be the same, bit for bit, and no file may be left behind. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from campaign import Case, Crash, Process, cases, differences, prepare, start

STYLES = ("moment", "in a row", "evaluation", "half a file", "before a file", "after a file", "store write", "SIGTERM")


@dataclass(frozen=True)
class Reference:
    """Run that was never killed: its folder, its duration, and its file operations in order."""

    case: Case
    folder: Path
    seconds: float
    ops: list[str]

    def numbers(self, kind: str, store: bool) -> list[int]:
        """Return the numbers of the operations of a kind that concern the store, or that do not."""
        targets = [op.split(" ", 1)[1] for op in self.ops if op.startswith(kind)]
        return [i + 1 for i, target in enumerate(targets) if ("/store/" in target) == store]

    def metrics(self) -> int:
        """Return the bytes of all metrics; a run that has written as many is done training."""
        return size_of_metrics(self.folder / "out")


@dataclass
class Trial:
    """Result of one run that was killed."""

    case: str
    style: str
    kills: int = 0
    faults: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)


def size_of_metrics(out: Path) -> int:
    """Return the bytes of the metrics of all runs below a folder."""
    return sum(path.stat().st_size for path in out.rglob("metrics.jsonl"))


def command(case: Case, folder: Path, again: bool = False) -> list[str]:
    """Return the command line that a user types."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(case.recipe, encoding="utf-8")
    resume = ["--resume"] if again and case.command == "run" else []
    return [case.command, str(recipe), "--out", str(folder / "out"), "--device", "cpu", *case.arguments, *resume]


def environment(case: Case, folder: Path) -> dict[str, str]:
    """Return the environment variables, with a store of the case's own, if it uses one."""
    return {"EGD_STORE": str(folder / "store") if case.stored else ""}


def reference(case: Case, work: Path) -> Reference:
    """Run the case once, undisturbed."""
    folder = work / "reference" / case.name.replace(" ", "_")
    ops, began = folder / "ops", time.monotonic()
    process = start(command(case, folder), folder / "log", environment(case, folder), ops=ops)
    if process.wait() != 0:
        raise RuntimeError(f"{case.name} fails undisturbed:\n{process.said()[-2000:]}")
    return Reference(case, folder, time.monotonic() - began, ops.read_text(encoding="utf-8").splitlines())


def strike(process: Process, style: str, ref: Reference, folder: Path, chance: random.Random) -> bool:
    """Kill the process, and return whether it was still running; a process that crashes by itself is waited for."""
    if style == "evaluation":
        while process.poll() is None and size_of_metrics(folder / "out") < ref.metrics():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1 * ref.seconds))
    elif style in ("moment", "SIGTERM"):
        time.sleep(chance.uniform(0.02, 0.95) * ref.seconds)
    else:
        process.wait()
        return process.code == -signal.SIGKILL
    alive = process.poll() is None
    process.send(signal.SIGTERM if style == "SIGTERM" else signal.SIGKILL)
    process.wait(120)
    return alive


def crash_of(style: str, ref: Reference, chance: random.Random) -> Crash | None:
    """Draw the operation at which the process crashes, or return None for a style that kills it from outside."""
    when = {"half a file": "half", "before a file": "before", "after a file": "after"}.get(style)
    if style == "store write":
        when = chance.choice(["half", "before", "after"])
    if when is None:
        return None
    numbers = ref.numbers("half" if when == "half" else "replace", style == "store write")
    return Crash(when, chance.choice(numbers)) if numbers else None


def trial(ref: Reference, style: str, seed: int, work: Path) -> Trial:
    """Kill a run, once or several times, resume it to the end, and compare it with the reference."""
    chance, case, result = random.Random(seed), ref.case, Trial(ref.case.name, style)
    folder = work / f"trial-{seed}"
    wanted = chance.choice([2, 3]) if style == "in a row" else 1
    again = False
    for _ in range(20):
        how = chance.choice(STYLES[:1] + STYLES[2:6]) if style == "in a row" else style
        crash = crash_of(how, ref, chance)
        if crash is None and how not in ("moment", "evaluation", "SIGTERM"):
            how = "moment"
        process = start(command(case, folder, again), folder / "log", environment(case, folder), crash=crash)
        if strike(process, how, ref, folder, chance):
            result.kills += 1
            again = True
            if how == "SIGTERM":
                result.codes.append(process.code or 0)
                _judge(process, result)
        elif again:
            break  # the run ended between two kills
        else:
            shutil.rmtree(folder)  # it ended before it could be killed: try again
        if result.kills >= wanted:
            break
    last = start(command(case, folder, again=True), folder / "log", environment(case, folder))
    if last.wait() != 0:
        result.faults.append(f"going on ends with code {last.code}: {last.said()[-600:]}")
    else:
        result.faults += differences(ref.folder / "out", folder / "out")
    if not result.faults:
        shutil.rmtree(folder)
    return result


def _judge(process: Process, result: Trial) -> None:
    """Check that a run asked to end says so and exits as shells expect, unless it had not begun or had already ended."""
    said = process.said()
    if process.code not in (143, 0, -signal.SIGTERM) or "Traceback" in said:
        result.faults.append(f"SIGTERM ends with code {process.code}: {said[-600:]}")


WORK: list[Path] = []
REFERENCES: dict[str, Reference] = {}


def _reference(case: Case) -> Reference:
    return reference(case, WORK[0])


def _trial(task: tuple[str, str, int, float]) -> Trial | None:
    """Run a trial, or return None where the time is up."""
    name, style, seed, until = task
    return trial(REFERENCES[name], style, seed, WORK[0]) if time.monotonic() < until else None


def styles_of(case: Case) -> list[str]:
    """Return the styles that apply to the case."""
    return [style for style in STYLES if style != "store write" or case.stored]


def tasks(chosen: list[Case], count: int, seed: int, until: float) -> Iterator[tuple[str, str, int, float]]:
    """Yield the cases in turn, each with its styles in turn."""
    turn: Counter[str] = Counter()
    for i in range(count):
        case = chosen[i % len(chosen)]
        styles = styles_of(case)
        style = styles[(turn[case.name] + chosen.index(case)) % len(styles)]
        turn[case.name] += 1
        yield case.name, style, 1_000_000 * seed + i, until


def table(title: str, trials: list[Trial], key: str) -> None:
    """Print counts by case or by style."""
    print(f"\n{title:<24}{'runs':>6}{'kills':>7}{'identical':>11}")
    for name in dict.fromkeys(str(getattr(t, key)) for t in trials):
        own = [t for t in trials if getattr(t, key) == name]
        print(f"{name:<24}{len(own):>6}{sum(t.kills for t in own):>7}{sum(not t.faults for t in own):>11}")


def main() -> int:
    """Run the campaign, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one by default")
    options = parser.parse_args()
    chosen = [case for case in cases() if not options.case or case.name in options.case]
    if not chosen:
        parser.error("no such case; there are: " + ", ".join(case.name for case in cases()))
    os.environ["OMP_NUM_THREADS"] = "1"
    work = (options.work or Path(tempfile.mkdtemp(prefix="egd-kills-"))).resolve()
    WORK.append(work)
    prepare(work)
    first = next((case for case in chosen if "offline_rl" in case.recipe), chosen[0])
    _reference(first)  # makes the dataset
    shutil.rmtree(work / "reference")
    context, began = multiprocessing.get_context("fork"), time.monotonic()
    trials: list[Trial] = []
    with context.Pool(options.jobs) as pool:
        REFERENCES.update({ref.case.name: ref for ref in pool.imap_unordered(_reference, chosen)})
    with context.Pool(options.jobs) as pool:  # forked anew, with the references in memory
        until = began + 60 * options.minutes
        for done in pool.imap_unordered(_trial, tasks(chosen, options.kills, options.seed, until)):
            if done is None:
                continue
            trials.append(done)
            print(f"\r{len(trials)} of {options.kills}", end="", file=sys.stderr, flush=True)
            for fault in done.faults:
                print(f"{done.case}, {done.style}: {fault}", flush=True)
    table("case", sorted(trials, key=lambda t: [c.name for c in chosen].index(t.case)), "case")
    table("kill", sorted(trials, key=lambda t: STYLES.index(t.style)), "style")
    print("\nexit codes after SIGTERM:", dict(Counter(code for t in trials for code in t.codes)))
    good, kills = sum(not t.faults and t.kills > 0 for t in trials), sum(t.kills for t in trials)
    print(f"{good} of {len(trials)} killed runs ({kills} kills) are bit-identical, {time.monotonic() - began:.0f} s")
    if good == len(trials) and options.work is None:
        shutil.rmtree(work)
    return 0 if good == len(trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())

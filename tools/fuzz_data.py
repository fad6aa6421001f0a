"""Damage small datasets in random ways and read them: ``python tools/fuzz_data.py --cases 1000 --seed 0``.

A case damages a local Minari dataset or a D4RL file (bytes, arrays, links, declarations, metadata), and then checks, describes,
imports and converts it to transitions, in a forked process with limits of memory and time. It passes with a UserError that says
what is wrong, or with sound data, if the check agrees with the reading. Any other outcome (a traceback, a crash, a hang, a
message of many pages) is printed with the numbers that repeat the case, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from egd.errors import UserError
from rl.data.d4rl_import import import_hdf5
from rl.data.describe import describe
from rl.data.episodes import load_episodes, to_offline_data
from rl.data.health import problems_of
from rl.data.minari_store import episode_buffer, write_dataset
from rl.data.stored import place_of
from rl.envs.making import register
from rl.tasks import find_task

ID = "fuzz/small-v0"
IMPORTED = "fuzz/imported-v0"
KINDS = ("box", "dict", "d4rl")
SECONDS = 60
MEMORY = 3 * 2**30
"""Bytes that a process may use beyond those at its start."""
LENGTHS = (6, 1, 4)
Rng = np.random.Generator
Damage = Callable[[Path, Rng], object]
Base = dict[str, tuple[Path, str]]


# -- what is damaged -------------------------------------------------------------------------------------------------


def make(kind: str, root: Path = Path()) -> Path:
    """Make a sound Minari dataset of three episodes, or a D4RL file of eleven rows, and return its folder."""
    rng = np.random.default_rng(0)
    if kind == "d4rl":
        rows = sum(LENGTHS)
        root.mkdir(parents=True)
        with h5py.File(root / "main_data.hdf5", "w") as file:
            for name in ("observations", "next_observations"):
                file.create_dataset(name, data=rng.normal(size=(rows, 3)), chunks=True, compression="gzip")
            file["actions"] = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
            file["rewards"] = rng.normal(size=rows)
            file["terminals"], file["timeouts"] = np.arange(rows) == 5, np.isin(np.arange(rows), (6, 10))
        return root
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    space = box if kind == "box" else gym.spaces.Dict({"at": box, "to": gym.spaces.Dict({"goal": box})})
    buffers = []
    for i, n in enumerate(LENGTHS):
        seen: Any = rng.normal(size=(n + 1, 3))
        seen = seen if kind == "box" else {"at": seen, "to": {"goal": -seen}}
        actions = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        buffers.append(episode_buffer(seen, actions, rng.normal(size=n), terminal=i == 1, seed=i))
    spec = gym.spec("Hopper-v5")
    write_dataset(ID, buffers, space, gym.spaces.Box(-1, 1, (2,), np.float32), spec, {})
    return place_of(ID) / "data"


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(folder: Path, rng: Rng) -> None:
    """Change some bytes."""
    path = _file(folder, rng)
    content = bytearray(path.read_bytes())
    for at in rng.integers(len(content), size=int(rng.choice([1, 1, 2, 8, 64]))):
        content[at] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def overwrite(folder: Path, rng: Rng) -> None:
    """Overwrite a stretch of bytes by one value."""
    path = _file(folder, rng)
    content = bytearray(path.read_bytes())
    at, n = int(rng.integers(len(content))), int(rng.integers(1, 200))
    content[at : at + n] = bytes([int(rng.choice([0, 255, 65]))]) * n
    path.write_bytes(content)


def cut(folder: Path, rng: Rng) -> None:
    """Cut off the end of the file."""
    path = _file(folder, rng)
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])


def without(folder: Path, rng: Rng) -> None:
    """Delete an entry."""
    with _edited(folder) as file:
        del file[_any(file, rng)]


def resize(folder: Path, rng: Rng) -> None:
    """Change an array's number of rows."""
    with _edited(folder) as file:
        name = _array(file, rng)
        old = file[name][()]
        rows = int(rng.choice([0, max(0, len(old) - 1), len(old) + 1, 2 * len(old)]))
        _put(file, name, np.resize(old, (rows, *old.shape[1:])))


def reshape(folder: Path, rng: Rng) -> None:
    """Change an array's axes."""
    with _edited(folder) as file:
        name = _array(file, rng)
        old = file[name][()]
        shapes = [old[:, None], old.reshape(-1), old.reshape(-1)[0], old.T, old[..., None, None], np.stack([old] * 2, -1)]
        _put(file, name, shapes[int(rng.integers(len(shapes)))])


def retype(folder: Path, rng: Rng) -> None:
    """Change an array's type."""
    with _edited(folder) as file:
        name = _array(file, rng)
        old = file[name][()]
        kinds: list[Any] = [
            lambda: old.astype(np.float16),
            lambda: old.astype(np.longdouble),
            lambda: old.astype(np.int8),
            lambda: (old != 0).astype(np.uint64) * np.uint64(2**64 - 1),
            lambda: old.astype(complex),
            lambda: old.astype("S8"),
            lambda: h5py.Empty("f8"),
            lambda: np.zeros(old.shape, [("a", "f4"), ("b", "i2")]),
            lambda: old.astype(">f8"),
            lambda: old != 0,
        ]
        if rng.random() < 0.2:
            del file[name]
            file.create_dataset(name, data=[["text"] * 2] * len(old), dtype=h5py.string_dtype())
        else:
            _put(file, name, kinds[int(rng.integers(len(kinds)))]())


def spoil(folder: Path, rng: Rng) -> None:
    """Replace a number by NaN, infinity, or one that is huge or out of range."""
    with _edited(folder) as file:
        name = _array(file, rng)
        values = file[name][()].astype(np.float64)
        at = tuple(int(rng.integers(n)) for n in values.shape)
        values[at] = rng.choice([np.nan, np.inf, -np.inf, 1e300, 1e30, 2.0, 0.5, -1.0])
        _put(file, name, values)


def note(folder: Path, rng: Rng) -> None:
    """Change an attribute."""
    with _edited(folder) as file:
        group = file.get("episode_1", file)
        key = str(rng.choice(["total_steps", "seed", "options/x", "id"]))
        for value in [_value(rng)]:
            with contextlib.suppress(TypeError, ValueError, OSError):  # what HDF5 cannot hold
                group.attrs[key] = value


def link(folder: Path, rng: Rng) -> None:
    """Replace an entry by a link."""
    with _edited(folder) as file:
        name = _any(file, rng)
        parent = file[name].parent.name
        targets: list[Any] = [
            h5py.SoftLink("/nowhere"),
            h5py.SoftLink(parent),
            h5py.SoftLink(f"/{name}"),
            h5py.ExternalLink("/etc/passwd", "/x"),
            h5py.ExternalLink("main_data.hdf5", "/episode_0"),
            h5py.ExternalLink("/dev/zero", "/"),
            file["/"],
            file[parent],
        ]
        del file[name]
        file[name] = targets[int(rng.integers(len(targets)))]


def elsewhere(folder: Path, rng: Rng) -> None:
    """Replace an array by one that lies in other files."""
    with _edited(folder) as file:
        name = _array(file, rng)
        shape = file[name].shape
        del file[name]
        if rng.random() < 0.5:
            file.create_dataset(name, shape, "f8", external=[("/etc/passwd", 0, 8 * int(np.prod(shape)))])
        else:
            layout = h5py.VirtualLayout(shape, "f8")
            layout[:] = h5py.VirtualSource("/dev/zero", "x", shape)
            file.create_virtual_dataset(name, layout)


def declare(folder: Path, rng: Rng) -> None:
    """Replace an array by one that declares rows the file does not hold."""
    with _edited(folder) as file:
        name = _array(file, rng)
        shape = file[name].shape
        del file[name]
        rows = int(rng.choice([10**11, 10**9, 2**25, 10**6]))
        packed = {"compression": "gzip"} if rng.random() < 0.5 else {}
        array = file.create_dataset(name, (rows, *shape[1:]), "f8", chunks=(1000, *shape[1:]), **packed)
        if rng.random() < 0.5:
            array[0] = 1


def rename(folder: Path, rng: Rng) -> None:
    """Rename an entry."""
    with _edited(folder) as file:
        name = _any(file, rng)
        new = str(rng.choice(["episode_7", "episode_-1", "episode_00", "x" * 300, "épisode", "rewards", "episode_1e9"]))
        with contextlib.suppress(ValueError, RuntimeError):  # it is taken
            file.move(name, new)


def metadata(folder: Path, rng: Rng) -> None:
    """Change an entry of metadata.json."""
    path = folder / "metadata.json"
    if not path.exists():
        return flip(folder, rng)
    tree = json.loads(path.read_text(encoding="utf-8"))
    key = str(rng.choice(sorted(tree)))
    nested = key.endswith("_space") or key == "env_spec"
    if nested and rng.random() < 0.8:
        inner = json.loads(tree[key])
        _change(inner, rng)
        tree[key] = json.dumps(inner)
    else:
        _change(tree, rng, key)
    path.write_text(json.dumps(tree), encoding="utf-8")


def _change(tree: Any, rng: Rng, key: str | None = None) -> None:
    """Change or delete one entry, at a random place in a tree of dicts and lists."""
    while isinstance(tree, dict | list) and tree:
        keys = sorted(tree) if isinstance(tree, dict) else list(range(len(tree)))
        at: Any = keys[int(rng.integers(len(keys)))] if key is None else key
        key = None
        if isinstance(tree[at], dict | list) and tree[at] and rng.random() < 0.7:
            tree = tree[at]
        elif rng.random() < 0.3:
            del tree[at]
            return
        else:
            tree[at] = _value(rng)
            return


def _value(rng: Rng) -> Any:
    values: list[Any] = [
        None, True, 0, -1, 3, 10**9, 2**70, 1.5, float("nan"), float("inf"), "", "x", "../../x", "subprocess:Popen", "\0",
        "1" * 5000, [], [[]], {}, {"type": "Box"}, ["a"], [10**6, 10**6], "float128", "O", "Dict", "Tuple", "Box", "arrow",
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]


def _file(folder: Path, rng: Rng) -> Path:
    """Draw one of the dataset's files, mostly that of the arrays."""
    files = [path for path in (folder / "main_data.hdf5", folder / "metadata.json") if path.exists()]
    return files[0] if len(files) == 1 or rng.random() < 0.7 else files[1]


def _edited(folder: Path) -> Any:
    return h5py.File(folder / "main_data.hdf5", "r+")


def _names(file: h5py.File) -> tuple[list[str], list[str]]:
    """Return the names of all entries, and those of the arrays."""
    everything: list[str] = []
    file.visit(everything.append)
    return everything, [name for name in everything if isinstance(file[name], h5py.Dataset)]


def _any(file: h5py.File, rng: Rng) -> str:
    return str(rng.choice(_names(file)[0]))


def _array(file: h5py.File, rng: Rng) -> str:
    return str(rng.choice(_names(file)[1]))


def _put(file: h5py.File, name: str, values: Any) -> None:
    del file[name]
    file.create_dataset(name, data=values)


DAMAGES: tuple[Damage, ...] = (
    flip, flip, flip, overwrite, cut, without, resize, reshape, retype, spoil, note, link, elsewhere, declare, rename, metadata,
    metadata, metadata,
)  # fmt: skip


# -- a case ----------------------------------------------------------------------------------------------------------


def use(kind: str, folder: Path, sound: str) -> str:
    """Read the dataset in every way, and return ``same``, ``other`` (sound data, but not the original's) or ``refused``.

    Raises RuntimeError where the ways disagree.
    """
    if kind == "d4rl":
        path = folder / "main_data.hdf5"
        (problems,) = problems_of(str(path)).values()
        read = _tried(lambda: _imported(path))
    else:
        (problems,) = problems_of(ID).values()
        problems = [p for p in problems if "environment" not in p]
        read = _tried(lambda: _summed(ID))
    refused = isinstance(read, UserError)
    said = "\n".join([*problems, str(read)])
    if any(len(line) > 1500 for line in [*problems, str(read)]) or "\0" in said:
        raise RuntimeError(f"not for a screen: {said[:3000]!r}")
    if refused != bool(problems):
        raise RuntimeError(f"the check finds {problems}, reading ends with {read!r}")
    return "refused" if refused else "same" if read == sound else "other"


def _tried(read: Callable[[], str]) -> str | UserError:
    try:
        return read()
    except UserError as error:
        return error


def _imported(path: Path) -> str:
    import_hdf5(path, IMPORTED, max_steps=4)
    return _summed(IMPORTED)


def _summed(dataset: str) -> str:
    """Return a digest of all transitions."""
    task = find_task(dataset)
    episodes = load_episodes([dataset], download=False)
    data = to_offline_data(episodes, 0.0)
    json.dumps(describe(task, episodes))
    return data.fingerprint()


def case(kind: str, number: int, root: Path, seed: int, base: Base) -> tuple[str, str]:
    """Run a case in this process, and return its outcome and the damage's name."""
    rng = np.random.default_rng([seed, number])
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    folder, sound = base[kind]
    store, own = folder.parents[2], root / folder.relative_to(folder.parents[2])
    shutil.copytree(store, root, dirs_exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    damage(own, rng)
    return use(kind, own, sound), damage.__name__


def bases(root: Path) -> Base:
    """Make the sound dataset of every kind in a store of its own, and return its folder and digest."""
    found: Base = {}
    for kind in KINDS:
        os.environ["MINARI_DATASETS_PATH"] = str(root / kind)
        folder = make(kind, root / kind / "a/b/c") if kind == "d4rl" else make(kind)
        found[kind] = folder, _imported(folder / "main_data.hdf5") if kind == "d4rl" else _summed(ID)
        shutil.rmtree(place_of(IMPORTED), ignore_errors=True)
    return found


def isolated(kind: str, number: int, seed: int, base: Base) -> tuple[str, str]:
    """Run a case in a forked process with limits of memory and time, and return its outcome and the damage's name."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if child == 0:
            _child(writing, lambda: case(kind, number, Path(scratch), seed, base))
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "failed", f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    outcome, _, damage = said.partition("\n")
    return outcome or "failed", damage


def _child(writing: int, run: Callable[[], tuple[str, str]]) -> None:
    signal.alarm(SECONDS)
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    try:
        said = "\n".join(run())
    except BaseException:
        said = "failed\n" + traceback.format_exc()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(said.encode())
    os._exit(0)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone, in this process")
    arguments = parser.parse_args()
    register()
    counts: Counter[tuple[str, str]] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        base = bases(Path(scratch) / "base")
        if arguments.only is not None:
            print(*case(KINDS[arguments.only % 3], arguments.only, Path(scratch) / "one", arguments.seed, base))
            return
        for number in range(arguments.cases):
            outcome, damage = isolated(KINDS[number % 3], number, arguments.seed, base)
            if outcome == "failed":
                failed += 1
                print(f"case {number} of seed {arguments.seed}: {damage}", flush=True)
            else:
                counts[damage, outcome] += 1
    for (damage, outcome), count in sorted(counts.items()):
        print(f"{damage:12} {outcome:8} {count}")
    totals = Counter({outcome: sum(n for (_, o), n in counts.items() if o == outcome) for _, outcome in counts})
    print(f"{arguments.cases} cases: {dict(totals)}, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

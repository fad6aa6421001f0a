"""The run folder: settings, metrics, checkpoints, figures and summary, each written so that a kill loses none of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from egd.checkpoint import Damaged, read_meta
from egd.config.base import Tree, flatten, read_yaml, to_yaml
from egd.config.trust import record
from egd.errors import UserError, writable
from egd.files import no_file_below, read_regular, write_atomic
from egd.runs.locks import locked
from egd.runs.summaries import BYTES, Frozen, agree, digest_of, read_summary, signed


@dataclass(frozen=True)
class RunFolder:
    """The files of one run: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``figures/`` and ``summary.json``."""

    path: Path
    root: Path | None = None
    """The folder that the user named with ``--out``, where it lies above ``path``."""
    execution: frozenset[str] = frozenset()
    """Dotted keys of the settings that change how the run is executed, and not its result (``execution_keys``)."""

    @property
    def config(self) -> Path:
        """Path of the fully resolved recipe; ``egd run`` on it repeats the run."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """Path of the result, which is written when the run is complete."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """Path of the metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        """Path of the folder of figures, PNG files."""
        return self.path / "figures"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a phase's newest checkpoint."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def previous(self, name: str) -> Path:
        """Return the path of a phase's checkpoint before the newest."""
        return self.path / "previous" / f"{name}.safetensors"

    def checkpoints(self) -> Iterator[Path]:
        """Yield the paths of all phases' checkpoints: the newest first, then those before them."""
        for kind in ("checkpoints", "previous"):
            yield from sorted((self.path / kind).glob("*.safetensors"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock in the with-block, so that no other process writes to it. A complete run is only read and
        needs no lock. Raises UserError where another process holds it.
        """
        if self.summary.exists():
            if (left := self.path / ".lock").exists():  # left by a process that was killed after its last write
                with suppress(OSError, UserError), locked(left, str(self.path), "--out"):
                    pass
            yield
            return
        with ExitStack() as held:
            with writable("--out"):
                self._check_files()
                held.enter_context(locked(self.path / ".lock", str(self.path), "--out"))
            yield

    def _check_files(self) -> None:
        """Raise UserError where the run would write through a link, or into a pipe or a device, which only a stranger puts
        there. The folder that the user names with ``--out`` may be a link, and lie below one.
        """
        way = takewhile(lambda path: path != self.root, [self.path, *self.path.parents] if self.root else [])
        if found := next(filter(Path.is_symlink, way), None) or no_file_below(self.path):
            raise UserError(
                f"{found} is neither a file nor a folder (a link, a pipe or a device), and the run would write through it: put "
                "what it stands for in its place, or choose another folder",
                key="--out",
            )

    def open(self, config: Tree, *, resume: bool) -> None:
        """Create the folder, or resume the run in it. Raises UserError where it holds another run, or a run without ``resume``.

        The settings ``execution``, such as the device and the number of threads, may change when a run resumes; the config
        then records them.
        """
        begun = self._begun()
        if begun and not resume:
            raise UserError(
                f"{self.path} holds a run already; add --resume to go on with it (or to show its result), "
                "or choose another folder",
                key="--out",
            )
        if resume and self.config.exists():
            self._same(read_yaml(self.config), config)
        if begun:
            self._made_with(config)
        with writable("--out"):
            if not self.summary.exists():
                write_atomic(self.config, to_yaml(config).encode())
                record(self.path, config)
            self.figures.mkdir(parents=True, exist_ok=True)

    def _begun(self) -> bool:
        """Return whether anything was trained or evaluated. A config.yaml alone does not count: a run that is refused at its
        start leaves it.
        """
        return any(path.exists() for path in (self.summary, self.metrics)) or any(self.checkpoints())

    def _made_with(self, config: Tree) -> None:
        """Raise UserError where a checkpoint was made with other settings, as when config.yaml has been edited or lost."""
        for path in self.checkpoints():
            try:
                settings = read_meta(path).get("settings")
            except Damaged:
                continue  # the previous checkpoint is looked for when the run resumes
            if settings and settings != digest_of(config, self.execution):
                raise UserError(
                    f"{path} was made with other settings than these: {self.config} has been edited or lost since; put back "
                    "what it was, or choose another folder",
                    key="--resume",
                )

    def settings(self) -> str:
        """Return the digest of ``config.yaml`` without ``execution``; an empty text where the file is missing."""
        return digest_of(read_yaml(self.config), self.execution) if self.config.exists() else ""

    def _same(self, old: Tree, new: Tree) -> None:
        before, after = flatten(old), flatten(new)
        changed = [k for k in sorted({*before, *after} - self.execution) if before.get(k) != after.get(k)]
        if changed:
            lines = [f"  {k}: {before.get(k)!r} there, {after.get(k)!r} now" for k in changed[:8]]
            raise UserError(
                f"{self.path} holds a run with other settings; use the same or choose another folder:\n" + "\n".join(lines),
                key="--resume",
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the metrics. Raises UserError for a number that is not finite."""
        if bad := not_finite(row):
            raise UserError(f"{', '.join(bad)} is not finite", key=str(row.get("phase", self.metrics)))
        self._check_log()
        with self.metrics.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            line = (json.dumps(row) + "\n").encode()
            try:
                while line:  # a nearly full disk takes only a part
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(size)  # half a line would be damage
                raise

    def _check_log(self) -> None:
        """Raise UserError where the metrics are a link or not a regular file."""
        if self.metrics.is_symlink() or (self.metrics.exists() and not self.metrics.is_file()):
            raise UserError(f"{self.metrics} is a link, or no file: nothing is written there; remove it", key="--out")

    def metrics_lines(self) -> list[bytes]:
        """Return the complete lines of the metrics; a last line that a kill cut short is left out."""
        self._check_log()
        content = read_regular(self.metrics, BYTES) if self.metrics.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def rewrite_metrics(self, lines: Sequence[bytes]) -> None:
        """Replace the metrics by these lines."""
        content = b"".join(lines)
        if self.metrics.exists() and self.metrics.read_bytes() != content:
            write_atomic(self.metrics, content)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary atomically, with its digest and the digest of the run's settings. A number that is not finite is
        written as null, and its key is listed under ``not_finite``.
        """
        found, settings = not_finite(summary), self.settings()
        if settings:
            summary = {**summary, "settings": settings, "execution": sorted(self.execution)}
        whole = {**_with_nulls(summary), **({"not_finite": found} if found else {})}
        write_atomic(self.summary, (json.dumps(signed(whole), indent=2, allow_nan=False) + "\n").encode())

    def read_summary(self, schema: type[Frozen] = Frozen) -> dict[str, Any] | None:
        """Read the summary; None where the run is not complete. Raises Damaged, a UserError, where the file is damaged, belongs
        to another run or does not fit the schema.
        """
        if not self.summary.exists():
            return None
        tree = read_summary(self.summary, schema)[0]
        if self.config.exists() and (problem := agree(read_yaml(self.config), tree)):
            remedy = "put the right one back, or remove it and go on with --resume"
            raise Damaged(f"{self.summary} is not of this run: {problem}; {remedy}")
        return tree


def not_finite(tree: Any, key: str = "") -> list[str]:
    """Return the dotted keys of the numbers in a JSON value that are not finite."""
    return [name for name, value in _leaves(tree, key) if isinstance(value, float) and not math.isfinite(value)]


def _leaves(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{key}.{i}")
    else:
        yield key, tree


def _with_nulls(tree: Any) -> Any:
    """Replace numbers that are not finite by null, and convert keys to text, as JSON requires."""
    if isinstance(tree, Mapping):
        return {str(name): _with_nulls(value) for name, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [_with_nulls(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

"""The content of ``summary.json`` and ``metrics.jsonl``, and its validation: this module alone reads these files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from math import fsum, isclose
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from egd.checkpoint import Damaged
from egd.config.base import flatten
from egd.files import read_regular

BYTES = 2**28
"""Upper limit of the size of a summary or a log."""

REMEDY = "remove it, and egd run --resume writes it anew from the run's checkpoints"


class Frozen(BaseModel):
    """Base of the schemas of a summary; further keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stats(Frozen):
    """Scores of one policy of one run, with every episode's return where these are kept."""

    mean: FiniteFloat
    std: FiniteFloat = 0.0
    episodes: PositiveInt
    returns: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _of_its_episodes(self) -> Stats:
        if self.returns and len(self.returns) != self.episodes:
            raise ValueError(f"{len(self.returns)} returns of {self.episodes} episodes")
        if self.returns and not isclose(self.mean, fsum(self.returns) / self.episodes, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f"the mean {self.mean:g} is not that of its returns")
        return self


class Point(Frozen):
    """One evaluation during training."""

    phase: str
    step: NonNegativeInt
    score: FiniteFloat


class Common(Frozen):
    """The keys in every experiment's summary."""

    task: str
    seed: NonNegativeInt
    seconds: dict[str, FiniteFloat] = {}
    versions: dict[str, str] = {}
    device: str = ""
    settings: str = ""
    """The digest of the run's settings without ``execution``; empty where the run has no config.yaml."""
    execution: tuple[str, ...] = ()
    """Dotted keys of the settings that change how a run is executed, and not its result."""


class Summary(Common):
    """Summary of a run that ends with scores of policies.

    The headline policy is the one whose score represents the run in tables and figures. An experiment without policies, such as
    toy2d or digits, gives rows of measurements instead (``Measured``).
    """

    algorithm: str = ""
    """The algorithm, whatever label the tables give the method."""
    method: str
    normalised: bool = True
    dataset_score: FiniteFloat | None = None
    policies: dict[str, Stats]
    """Scores by policy; empty where there was no environment to evaluate in."""
    headline: str
    """Name of the headline policy, a key of ``policies``."""
    best: Point | None = None
    evaluations: tuple[Point, ...] = ()
    reused: dict[str, Any] = {}
    action_ms: FiniteFloat | None = None
    """Milliseconds per action, where the run measured them."""
    remarks: tuple[str, ...] = ()
    """Sentences to print under every table with this task."""

    @model_validator(mode="after")
    def _headline_exists(self) -> Summary:
        if self.policies and self.headline not in self.policies:
            raise ValueError(f"the headline policy '{self.headline}' is not among its policies")
        return self


class Measured(Summary):
    """Summary of a run without policies, which ends with ``rows`` of measurements on samples.

    ``policies`` is {} and ``headline`` is empty.
    """

    policies: dict[str, Stats] = {}
    headline: str = ""
    rows: tuple[dict[str, str | FiniteFloat | None], ...]
    """Rows of measurements: texts, beta and omega identify a row, its other numbers are measurements."""


S = TypeVar("S", bound=Frozen)


def digest(tree: Mapping[str, Any]) -> str:
    """Return the digest of a JSON value; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def signed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Add the value's own digest, as summaries are written."""
    return {**tree, "digest": digest(tree)}


def read_summary(path: Path, schema: type[S]) -> tuple[dict[str, Any], S]:
    """Return the content of the file without its digest, and the part that the schema reads. Raises Damaged, with the remedy,
    where the content was changed since it was written, or has no digest.
    """
    try:
        tree = json.loads(read_regular(path, BYTES).decode("utf-8"), parse_constant=_refuse)
        written = tree.pop("digest", None) if isinstance(tree, dict) else None
        found = schema.model_validate_json(json.dumps(tree), strict=True)
    except (OSError, ValueError, RecursionError) as error:  # pydantic's, JSON's and UTF-8's are ValueErrors
        raise Damaged(f"{path} is damaged ({_reason(error)}); {REMEDY}") from None
    if written is None:
        raise Damaged(f"{path} has no digest: it was edited, or is of an earlier version of egd; {REMEDY}")
    if written != digest(tree):
        raise Damaged(f"{path} is damaged or was edited: its digest is another; {REMEDY}")
    return tree, found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics, [] where there is no file. Raises Damaged, with the remedy, where a line is
    damaged.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = read_regular(path, BYTES).decode("utf-8").splitlines() if path.exists() else []
        for line in lines:
            rows.append(_row(line))
    except (OSError, ValueError, RecursionError) as error:
        where = "" if isinstance(error, OSError) else f"line {len(rows) + 1}: "
        raise Damaged(f"{path} is damaged ({where}{_reason(error)}); put it back from a copy, or remove it") from None
    return rows


def _row(line: str) -> dict[str, Any]:
    row: Any = json.loads(line, parse_constant=_refuse)
    if not isinstance(row, dict) or not isinstance(row.get("phase"), str) or type(row.get("step", 0)) is not int:
        raise ValueError("not metrics of a phase")
    return row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no result")


def _reason(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return "it is empty" if not error.doc.strip() else f"not JSON: {error}"
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def agree(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """Describe how a run's settings and its summary contradict each other; None where they agree."""
    for key in ("task", "seed"):
        if key in summary and key in config and config[key] != summary[key]:  # not every experiment has a setting of that name
            return f"config.yaml has {key} {config[key]!r}, summary.json {summary[key]!r}"
    execution = summary.get("execution", [])
    if summary.get("settings") and summary["settings"] != digest_of(config, execution if isinstance(execution, list) else []):
        return "summary.json is of other settings than config.yaml has"
    return None


def digest_of(config: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Return the digest of settings, without these dotted keys."""
    return digest({key: value for key, value in flatten(config).items() if key not in without})

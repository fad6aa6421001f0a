"""``egd store``: the finished phases that later runs reuse. Heavy imports are delayed until the command runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from egd.cli.terminal import console, listing, say, user_errors
from egd.errors import UserError
from egd.runs.safe_names import literal

if TYPE_CHECKING:
    from egd.runs.store import Store, StoredPhase

app = typer.Typer(help="Finished phases that later runs take instead of training them: list, prune.", no_args_is_help=True)
DAY = 86400.0


@app.command("list")
def list_entries() -> None:
    """List the stored phases, the most recently used first."""
    with user_errors():
        store = _store()
        entries = store.entries()
        table = listing("finished phases", "key", "phase", "task", "agent", "seed", "size", "unused for")
        for entry in entries:
            about = entry.about()
            cache_key = about.get("cache_key")
            phase = cache_key.get("phase") if isinstance(cache_key, dict) else None
            facts = [phase, *(about.get(key) for key in ("task", "agent", "seed"))]
            cells = [entry.key, *("-" if fact is None else str(fact) for fact in facts), _size(entry.size), _age(entry)]
            table.add_row(*map(literal, cells))
        console.print(table)
        say(f"{len(entries)} in {store.path}, {_size(sum(e.size for e in entries))} of at most {_size(store.limit)}")


@app.command()
def prune(
    keep_gb: Annotated[
        float | None, typer.Option(help="Keep so many gigabytes, of what was asked for last.", min=0, max=1e9)
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Remove what nobody has asked for in so many days.", min=0, max=1e6)
    ] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove what is not as it was put there.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove all of it.")] = False,
) -> None:
    """Remove stored phases. A run that needs a removed phase trains it again."""
    with user_errors():
        if keep_gb is None and older_than is None and not damaged and not everything:
            raise UserError("say what to remove: --keep-gb, --older-than, --damaged or --all", key="egd store prune")
        store = _store()
        removed = [entry for entry in store.entries() if everything or _unused(entry, older_than) or (damaged and _bad(entry))]
        for entry in removed:
            entry.remove()
        removed += [] if keep_gb is None else store.keep(keep_gb * 1e9)
        for entry in removed:
            say(f"removed {entry.key}, {_size(entry.size)}, unused for {_age(entry)}")
        _conclude(store, removed)


def _conclude(store: Store, removed: Sequence[StoredPhase]) -> None:
    left = store.entries()
    what = f"{len(removed)} removed, {_size(sum(e.size for e in removed))}"
    say(f"{what}; {len(left)} left in {store.path}, {_size(sum(e.size for e in left))}")


def _store() -> Store:
    from egd.runs.store import default_store

    store = default_store()
    if store is None:
        raise UserError("there is no store: it is an empty name; unset it, or name a folder", key="EGD_STORE")
    for above in store.path.parents:
        if above.exists() and not above.is_dir():
            raise UserError(f"'{store.path}' cannot be a folder: '{above}' is none; name another", key="EGD_STORE")
    return store


def _unused(entry: StoredPhase, days: float | None) -> bool:
    return days is not None and time.time() - entry.used > days * DAY


def _bad(entry: StoredPhase) -> bool:
    try:
        entry.whole()
    except UserError:
        return True
    return False


def _size(count: float) -> str:
    unit = next((unit for unit in (10**9, 10**6, 10**3) if count >= unit), 1)
    return f"{count / unit:.3g} {['GB', 'MB', 'kB', 'B'][(10**9, 10**6, 10**3, 1).index(unit)]}"


def _age(entry: StoredPhase) -> str:
    hours = max(0.0, time.time() - entry.used) / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours"

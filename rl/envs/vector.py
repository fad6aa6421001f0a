"""Vectors of environments that are stepped in this process, or by worker processes while this one does something else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import CloudpickleWrapper

from egd.errors import UserError

if TYPE_CHECKING:
    from rl.envs.making import Env

Array = np.ndarray[Any, Any]
Method = Literal["reset", "step"]
T = TypeVar("T")


class Step(NamedTuple):
    """What n environments answer: observations (n, S), rewards (n,), and whether the episodes ended (n,), and how."""

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array


class EnvVectors:
    """Several vectors of environments; a call on one starts its work, ``receive`` waits for it. Made by ``vectors``."""

    def __init__(self, places: Sequence[Here | Worker]) -> None:
        self.places = places
        self.pending: dict[int, list[Future[Step]]] = {}

    def reset(self, vector: int, seeds: Sequence[int]) -> None:
        """Start the first episodes of a vector from ``seeds``, one an environment."""
        self._call("reset", vector, np.asarray(seeds))

    def step(self, vector: int, actions: Array) -> None:
        """Send actions (n, A), clipped to the action space. An environment whose episode ended starts the next one instead."""
        self._call("step", vector, actions)

    def receive(self, vector: int) -> Step:
        """The answer to the last call on this vector. UserError when a worker died; what an environment raised is raised
        here, too.
        """
        with _death_reported():
            parts = [future.result() for future in self.pending.pop(vector)]
        return Step(*map(np.concatenate, zip(*parts, strict=True)))

    def _call(self, method: Method, vector: int, rows: Array) -> None:
        shares = zip(_places_of(vector, self.places), np.array_split(rows, len(self.places)), strict=True)
        with _death_reported():
            self.pending[vector] = [place.call(method, vector, share) for place, share in shares if len(share)]


@contextmanager
def vectors(make_env: Callable[[], Env], sizes: Sequence[int], workers: int) -> Iterator[EnvVectors]:
    """Vectors of ``sizes`` environments, each shared out among the workers (0: all are here). Closed at the end, come what may.

    Workers are fresh interpreters, which ``make_env`` must reach by pickle; what an environment does depends on its seed and
    actions alone, so their number changes no result.
    """
    count = min(workers, sum(sizes)) or 1
    shares = [[0] * len(sizes) for _ in range(count)]
    for vector, size in enumerate(sizes):
        for share, rows in zip(_places_of(vector, shares), np.array_split(np.arange(size), count), strict=True):
            share[vector] = len(rows)
    with ExitStack() as stack:
        place = Worker if workers else Here
        places = [stack.enter_context(closing(place(make_env, share))) for share in shares]
        with _death_reported():
            for started in places:
                started.wait()
        yield EnvVectors(places)


def _places_of(vector: int, places: Sequence[T]) -> list[T]:
    """Each vector begins at another place, so that small vectors do not all fall to the first."""
    first = vector % len(places)
    return [*places[first:], *places[:first]]


class Here:
    """Some environments of every vector, stepped one after the other."""

    def __init__(self, make_env: Callable[[], Env], sizes: Sequence[int]) -> None:
        self.vectors = {
            k: SyncVectorEnv([make_env] * n, autoreset_mode=AutoresetMode.NEXT_STEP) for k, n in enumerate(sizes) if n
        }

    def wait(self) -> None:
        """They are made already."""

    def call(self, method: Method, vector: int, rows: Array) -> Future[Step]:
        """Do it at once."""
        done: Future[Step] = Future()
        done.set_result(self.reset(vector, rows) if method == "reset" else self.step(vector, rows))
        return done

    def reset(self, vector: int, seeds: Array) -> Step:
        """Seeds (n,)"""
        observation, _ = self.vectors[vector].reset(seed=seeds.tolist())
        none = np.zeros(len(seeds), dtype=bool)
        return Step(observation, np.zeros(len(seeds)), none, none)

    def step(self, vector: int, actions: Array) -> Step:
        """Actions (n, A)"""
        envs = self.vectors[vector]
        space: Any = envs.single_action_space
        return Step(*envs.step(actions.clip(space.low, space.high))[:4])

    def close(self) -> None:
        """Close the environments."""
        for envs in self.vectors.values():
            envs.close()


class Worker:
    """The same in a process of its own, an executor of one: it hands over calls, answers, exceptions and the news of death."""

    def __init__(self, make_env: Callable[[], Env], sizes: Sequence[int]) -> None:
        # spawned, for a fork would inherit the locks of torch's threads and, on a GPU, a context that it must not touch
        self.executor = ProcessPoolExecutor(1, get_context("spawn"), _end_with_the_parent)
        self.made = self.executor.submit(_make, CloudpickleWrapper(make_env), sizes)

    def wait(self) -> None:
        """Until the environments are made; raises what making them raised."""
        self.made.result()

    def call(self, method: Method, vector: int, rows: Array) -> Future[Step]:
        """Begin it; calls are answered in their order."""
        return self.executor.submit(_do, method, vector, rows)

    def close(self) -> None:
        """Close the environments, end the process."""
        with suppress(BrokenProcessPool):
            self.executor.submit(_close)
        self.executor.shutdown()


_here: list[Here] = []  # in a worker: its environments


def _end_with_the_parent() -> None:
    """A worker leaves Ctrl-C to its parent, which closes it, and does not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    parent = parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _make(make_env: CloudpickleWrapper, sizes: Sequence[int]) -> None:
    _here.append(Here(make_env.fn, sizes))


def _do(method: Method, vector: int, rows: Array) -> Step:
    return _here[0].call(method, vector, rows).result()


def _close() -> None:
    for here in _here:
        here.close()


@contextmanager
def _death_reported() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a worker process that steps environments died; if nothing above says why, it was killed, perhaps for want of "
            "memory: use fewer workers or fewer evaluation.envs; workers=0 steps the environments in the main process",
            key="evaluation.workers",
        ) from None

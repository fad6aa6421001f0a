"""Vectors of environments, stepped in this process, or by worker processes while this process does other work."""

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
    """Results of a step of n environments: observations (n, S), rewards (n,), and flags of terminations and
    truncations (n,).
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array


class EnvVectors:
    """Several vectors of environments, made by ``vectors``: a call on one starts its work, and ``receive`` waits for the
    result.
    """

    def __init__(self, places: Sequence[Here | Worker]) -> None:
        self.places = places
        self.pending: dict[int, list[Future[Step]]] = {}

    def reset(self, vector: int, seeds: Sequence[int]) -> None:
        """Start the first episodes of a vector from ``seeds``, one per environment."""
        self._call("reset", vector, np.asarray(seeds))

    def step(self, vector: int, actions: Array) -> None:
        """Send actions (n, A), clipped to the action space. An environment whose episode ended starts its next
        episode instead.
        """
        self._call("step", vector, actions)

    def receive(self, vector: int) -> Step:
        """Return the result of the last call on this vector.

        Raises UserError when a worker died, and raises here whatever an environment raised.
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
    """Yield vectors of ``sizes`` environments, each shared among the workers (0: this process alone), and close them in the
    end.

    Workers are fresh interpreters, so ``make_env`` must be picklable. What an environment does depends on its seed and actions
    alone, so the number of workers changes no result.
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
    """Rotate the places by the vector's number, so that small vectors do not all fall to the first place."""
    first = vector % len(places)
    return [*places[first:], *places[:first]]


class Here:
    """Share of every vector's environments that is stepped in this process, one environment after the other."""

    def __init__(self, make_env: Callable[[], Env], sizes: Sequence[int]) -> None:
        self.vectors = {
            k: SyncVectorEnv([make_env] * n, autoreset_mode=AutoresetMode.NEXT_STEP) for k, n in enumerate(sizes) if n
        }

    def wait(self) -> None:
        """Return at once, because the environments are made already."""

    def call(self, method: Method, vector: int, rows: Array) -> Future[Step]:
        """Call the method at once, and return a finished future."""
        done: Future[Step] = Future()
        done.set_result(self.reset(vector, rows) if method == "reset" else self.step(vector, rows))
        return done

    def reset(self, vector: int, seeds: Array) -> Step:
        """Reset the environments of a vector with seeds (n,)."""
        observation, _ = self.vectors[vector].reset(seed=seeds.tolist())
        none = np.zeros(len(seeds), dtype=bool)
        return Step(observation, np.zeros(len(seeds)), none, none)

    def step(self, vector: int, actions: Array) -> Step:
        """Step the environments of a vector with actions (n, A)."""
        envs = self.vectors[vector]
        space: Any = envs.single_action_space
        return Step(*envs.step(actions.clip(space.low, space.high))[:4])

    def close(self) -> None:
        """Close the environments."""
        for envs in self.vectors.values():
            envs.close()


class Worker:
    """Share of every vector's environments that is stepped in another process, an executor with one worker."""

    def __init__(self, make_env: Callable[[], Env], sizes: Sequence[int]) -> None:
        # Spawned: a fork would inherit the locks of torch's threads and, on a GPU, a context that it must not touch.
        self.executor = ProcessPoolExecutor(1, get_context("spawn"), _end_with_the_parent)
        self.made = self.executor.submit(_make, CloudpickleWrapper(make_env), sizes)

    def wait(self) -> None:
        """Wait until the environments are made, and raise any error of their making."""
        self.made.result()

    def call(self, method: Method, vector: int, rows: Array) -> Future[Step]:
        """Start the call and return its future; calls are answered in order."""
        return self.executor.submit(_do, method, vector, rows)

    def close(self) -> None:
        """Close the environments and end the process."""
        with suppress(BrokenProcessPool):
            self.executor.submit(_close)
        self.executor.shutdown()


_here: list[Here] = []  # the environments of a worker process


def _end_with_the_parent() -> None:
    """Ignore Ctrl-C in a worker, which its parent closes, and exit when the parent is killed."""
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

"""The command line in processes of their own, which can be killed.

They are forked from a server that has imported everything, so that none of them spends its first seconds on imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "egd.cli.main",
        "rl.runs.experiment",
        "rl.runs.job",
        "rl.agents",
        "rl.evaluation.figures",
        "gymnasium_robotics",
        "torch._dynamo",
    ]
)


def start_egd(*arguments: object, env: Mapping[str, str] | None = None) -> BaseProcess:
    """``egd ARGUMENTS`` in a new process, its standard output thrown away."""
    environment = {**os.environ, **(env or {})}
    process = _CONTEXT.Process(target=_egd, args=([str(a) for a in arguments], environment))
    process.start()
    return process


def exit_code(process: BaseProcess) -> int | None:
    """Wait for the process to end."""
    process.join(300)
    return process.exitcode


def kill_when(process: BaseProcess, reached: Path, how: int = signal.SIGKILL) -> None:
    """Send a signal as soon as a file is there; AssertionError where the process ends before."""
    deadline = time.monotonic() + 120
    while not reached.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert reached.exists() and process.pid is not None, "the run ended before it reached the phase to be killed in"
    if process.is_alive():
        os.kill(process.pid, how)
    process.join(300)


def _egd(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    from egd.cli.main import entry

    if find_spec("gymnasium") is not None:  # else the tests are those of egd alone
        import rl.envs.maze2d

        rl.envs.maze2d.step_limit = lambda name: 40  # as the fixture ``recipe`` has it in this process
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["egd", *arguments]
    entry()

"""Import of gymnasium-robotics without the notice it prints on stderr at every start.

The notice says that the Adroit -v1 rewards changed in 1.2.1; docs/data.md says so where results are read. The import loads
MuJoCo, which fails where the rendering backend named by MUJOCO_GL is not installed: a UserError.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from egd.errors import UserError


@contextlib.contextmanager
def _backend_checked() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each backend raises an error of its own
        if (backend := os.environ.get("MUJOCO_GL")) is None:
            raise
        raise UserError(
            f"MuJoCo cannot be imported with '{backend}' ({type(error).__name__}: {error}); take a backend that is installed: "
            "egl (a GPU, or Mesa's libEGL), osmesa (Mesa's libOSMesa) or glfw (a display); or unset it",
            key="MUJOCO_GL",
        ) from error


with contextlib.redirect_stderr(io.StringIO()), _backend_checked():
    import gymnasium_robotics
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

__all__ = ["PointMazeEnv", "gymnasium_robotics", "maps"]

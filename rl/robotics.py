"""gymnasium-robotics, imported without the notice it prints on stderr at every start.

The notice says that the Adroit -v1 rewards changed in 1.2.1; docs/data.md says so where results are read.
"""

from __future__ import annotations

import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()):
    import gymnasium_robotics
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

__all__ = ["PointMazeEnv", "gymnasium_robotics", "maps"]

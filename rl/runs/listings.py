"""Tables of tasks and of methods: ``egd list tasks``, ``egd data list``, ``egd list methods``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from egd.runs.recipe import summary_line
from rl.agents import AGENTS
from rl.data.stored import is_local
from rl.tasks import TASKS, Task

FAMILIES = {"gym-mujoco": "Gym-MuJoCo", "maze2d": "Maze2D", "antmaze": "AntMaze", "adroit": "Adroit", "other": "other"}
_DATA = {
    "gym-mujoco": "Data: mujoco/<env>/<quality>-v0; medium-expert is medium and expert. Minari's hub has no medium-replay: "
    "import D4RL's file.",
    "maze2d": "Data: D4RL/pointmaze/<variant>-v2, relabelled for the one goal; or made by egd data generate; or D4RL's file.",
    "antmaze": "Data: D4RL/antmaze/<variant>-v1, relabelled for the one goal.",
    "adroit": "Data: D4RL/<env>/<quality>-v2.",
}
_NARROW = ("task", "environment", "steps", "reference", "reward", "here")
_WIDE = ("task", "D4RL's id", "datasets", "here", "environment", "steps", "reference", "reward", "differs from the benchmark's")


def list_tasks(wide: bool = False) -> list[RenderableType]:
    """Return the table of all tasks with a short name, by family; ``wide`` adds columns of dataset ids and notes."""
    beyond = [task for task in TASKS.values() if task.benchmark is None]
    title = f"tasks: the {len(TASKS) - len(beyond)} of AEPO's tables, and {len(beyond)} more (*)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for column in _WIDE if wide else _NARROW:
        table.add_column(
            column, no_wrap=wide or column == "task", overflow="fold", justify="right" if column == "steps" else "left"
        )
    families = [list(tasks) for _, tasks in groupby(TASKS.values(), lambda task: task.family)]
    for tasks in families:
        table.add_section()
        for task in tasks:
            table.add_row(*(_wide_row(task) if wide else _narrow_row(task)))
    return [table, Text(), *([] if wide else [_notes(tasks) for tasks in families]), Text(_LEGEND, style="dim")]


def list_methods(wide: bool = False) -> list[RenderableType]:
    """Return the table of the agents that a recipe can name, with the first line of each one's docstring."""
    table = Table(title="methods, agent: in a recipe", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("agent", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, agent in sorted(AGENTS.items()):
        table.add_row(name, summary_line(agent))
    return [table]


_LEGEND = (
    "reference: D4RL's least and greatest return, scores 0 and 100. reward: the transform in the recipes; range is 1000 / "
    "(largest - smallest return of an episode). here: whether the data is in the local Minari store. A Minari id is a task "
    "too. --wide: a line a task, with the ids of its data."
)


def _narrow_row(task: Task) -> list[str]:
    return [_name(task), task.env_id or "", str(task.max_steps), _reference(task, 0), str(task.reward), _here(task)]


def _wide_row(task: Task) -> list[str]:
    hub = "" if task.on_hub else " (not on the hub)"
    data = " + ".join(task.datasets) + hub
    facts = [task.env_id or "", str(task.max_steps), _reference(task, 3), str(task.reward), task.env_note]
    return [_name(task), task.benchmark or "", data, _here(task), *facts]


def _name(task: Task) -> str:
    return task.name + ("" if task.benchmark else " *")


def _reference(task: Task, digits: int) -> str:
    if task.reference is None:
        return "-"
    return " to ".join(f"{bound:.{digits}f}" for bound in task.reference)


def _here(task: Task) -> str:
    found = [is_local(dataset) for dataset in task.datasets]
    return "[green]yes[/]" if all(found) else "part" if any(found) else "no"


def _notes(tasks: Sequence[Task]) -> RenderableType:
    """Return notes on a family's data, and on how its environments differ from the benchmark's."""
    family = tasks[0].family
    environments: dict[str, dict[str, None]] = {}
    for head, _, remark in (task.env_note.partition(": ") for task in tasks):
        environments.setdefault(remark, {})[head] = None
    notes = [Text(f"{'; '.join(heads)}: {remark}.") for remark, heads in environments.items()]
    head_line = Text.assemble((FAMILIES[family], "bold"), ": ", _DATA[family])
    return Group(head_line, *(Padding(note, (0, 0, 0, 2)) for note in notes))

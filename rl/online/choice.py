"""A generator by its name in a recipe."""

from __future__ import annotations

from egd.config.base import ComponentConfig
from egd.config.components import Registry, build, validate
from egd.errors import UserError
from rl.online.generators.base import Generator, GeneratorContext
from rl.tasks import Task

GENERATORS = Registry("transition generator", "rl.online.generators")
KEY = "online.generator"


def check_generator(config: ComponentConfig, task: Task) -> None:
    """UserError for a generator that does not exist or settings that do not fit it."""
    component = validate(GENERATORS, config.spec, {"world"}, KEY)
    if not (isinstance(component, type) and issubclass(component, Generator)):
        raise UserError(f"'{config.name}' is not a subclass of rl.online.generators.base.Generator", key=KEY)
    component.check(config.spec.settings, task)


def make_generator(config: ComponentConfig, world: GeneratorContext) -> Generator:
    """The recipe's."""
    made: Generator = build(GENERATORS, config.spec, {"world": world}, KEY)
    return made

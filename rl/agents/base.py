"""What an agent is to the rest of the program: phases to be trained, and policies to be rolled out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from egd import sources
from egd.networks import NoiseMLP
from egd.phases import Phase, seed_of
from egd.training import DenoiserLearner
from egd.types import Schedule
from rl.config import RunConfig
from rl.critics import Critic, CriticLearner
from rl.critics.choice import critic_settings
from rl.data.transitions import Batch, OfflineData
from rl.policies import Randomness
from rl.tasks import Task

Act: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(standardised states (n, S), which of the scales (n,)) -> actions (n, A)."""
Made = TypeVar("Made")


class Agent(ABC):
    """One method on one task with one seed: its networks, how they are trained, how they act.

    A kind of agent is a file in ``rl.agents`` and a line in its table. ``Config`` is the recipe that it understands. Policies
    go by names; one that has guidance scales stands for several, ``name@scale``.
    """

    Config: ClassVar[type[RunConfig]]
    learns_online: ClassVar[bool] = False
    """Whether training needs the environment."""

    def __init__(self, config: Any, data: OfflineData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.states, self.actions = data.transitions.state.shape[1], data.transitions.action.shape[1]

    @classmethod  # noqa: B027
    def check(cls, config: Any) -> None:
        """UserError for what the types of the recipe cannot tell, before anything is trained."""

    @classmethod
    def alike(cls, config: Any) -> Mapping[str, Any]:
        """The settings in which runs agree that are trained together: all but the seed and the evaluation."""
        tree: dict[str, Any] = config.model_dump(mode="json", exclude={"seed": True, "evaluation": {"episodes", "envs"}})
        return tree

    @abstractmethod
    def phases(self) -> list[Phase]:
        """What is to be trained, in order."""

    @abstractmethod
    def policy(self, name: str, scales: Sequence[float], randomness: Randomness) -> Act:
        """A policy of ``scales``, row i at its own of them."""

    def arms(self) -> dict[str, float | None]:
        """The policies by name and the guidance scale that is each one's own; None for one that has no scale."""
        return {"policy": None}

    def scales(self, only: Sequence[float] | None = None) -> dict[str, list[float]]:
        """The policies to be evaluated and their guidance scales, or ``only`` these; [] for a policy that has none."""
        return {"policy": []}

    @property
    def headline(self) -> str:
        """The policy that stands for the method, ``name`` or ``name@scale``."""
        return "policy"

    def acting(self, seed: int) -> Act:
        """The headline at its own scale, with random numbers of that seed."""
        name, _, scale = self.headline.partition("@")
        return self.policy(name, [float(scale)] if scale else [], torch.Generator(self.device).manual_seed(seed))

    def decisive(self, phases: Sequence[Phase]) -> Phase:
        """Of its phases, the last one that the headline depends on: evaluations in mid-training are made in it."""
        return next(phase for phase in reversed(phases) if phase.name != "calibration")

    @property
    def entries(self) -> int:
        """How many normal numbers a draw takes: the entries of what is sampled, an action."""
        return self.actions

    def modules(self) -> dict[str, nn.Module]:
        """All that its policies read and that is not the same in all runs of a recipe."""
        return {}

    def ready(self, phase: str, generator: torch.Generator) -> None:  # noqa: B027
        """Make the policies usable in the middle of a phase."""

    def diagnostics(self, generator: torch.Generator) -> dict[str, Any]:
        """For ``summary.json``."""
        return {}

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """What people should look at."""
        return []

    def draw(self, folder: Path, title: str, task: Task, rollouts: Any) -> None:  # noqa: B027
        """Figures, into the folder, from the rollouts of the evaluation."""

    # -- for those that inherit ----------------------------------------------------------------------------------

    def fresh(self, name: str, make: Callable[[], Made]) -> Made:
        """Make a network with initial weights that depend on the run's seed and its own name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.config.seed, f"init/{name}"))
            made = make()
        return made.to(self.device) if isinstance(made, nn.Module) else made

    def made_of(
        self,
        name: str,
        settings: Mapping[str, Any],
        code: Sequence[Any],
        *,
        data: Sequence[str] = tuple(Batch.__dataclass_fields__),
        after: Sequence[Any] = (),
    ) -> Any:
        """What decides the outcome of a phase: settings, those members of the transitions, the phases before it, code."""
        return {
            "phase": name,
            "seed": self.config.seed,
            "precision": self.config.precision,
            "settings": dict(settings),
            "data": self.data.fingerprint(*data),
            "code": sources.digest(*code),
            "after": list(after),
        }

    def denoiser_made_of(self, schedule: Schedule) -> Any:
        """Of the phase that fits a denoiser to the data's actions: the same for every kind of agent, which so share it."""
        settings = self.config.model_dump(mode="json", include={"schedule", "denoiser"})
        return self.made_of("denoiser", settings, (DenoiserLearner, NoiseMLP, type(schedule)), data=("state", "action"))

    def critic_made_of(self, critic: Critic, after: Sequence[Any] = ()) -> Any:
        """Of the phase that fits a critic to the data alone, or to what the phases before it have left."""
        return self.made_of("critic", critic_settings(self.config.critic), (CriticLearner, type(critic)), after=after)

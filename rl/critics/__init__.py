"""Critics, one per file and found by name; ``rl.critics.base`` has their contract."""

from rl.critics.base import Critic, CriticLearner, MinusAdvantage
from rl.critics.cal_ql import CalQL
from rl.critics.cql import CQL
from rl.critics.in_sample_planning import InSamplePlanning
from rl.critics.iql import IQL
from rl.critics.isql import ISQL

__all__ = ["CQL", "IQL", "ISQL", "CalQL", "Critic", "CriticLearner", "InSamplePlanning", "MinusAdvantage"]

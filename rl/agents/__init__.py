"""Agents: one file each, and one line here."""

from egd.config.components import by_path
from egd.errors import UserError, nearest
from rl.agents.aepo import AEPO
from rl.agents.base import Agent
from rl.agents.bc import BC
from rl.agents.cal_ql import CalQLAgent
from rl.agents.cql import CQLAgent
from rl.agents.diffuser import Diffuser
from rl.agents.diffusion_bc import DiffusionBC
from rl.agents.diffusion_ql import DiffusionQL
from rl.agents.edp import EDP
from rl.agents.idql import IDQL
from rl.agents.iql import IQLAgent
from rl.agents.iql_online import IQLOnline
from rl.agents.qgpo import QGPO
from rl.agents.qipo import QIPO
from rl.agents.sfbc import SfBC
from rl.agents.srpo import SRPO
from rl.agents.td3_bc import TD3BC

AGENTS: dict[str, type[Agent]] = {
    "aepo": AEPO,
    "bc": BC,
    "cal_ql": CalQLAgent,
    "cql": CQLAgent,
    "diffuser": Diffuser,
    "diffusion_bc": DiffusionBC,
    "diffusion_ql": DiffusionQL,
    "edp": EDP,
    "idql": IDQL,
    "iql": IQLAgent,
    "iql_online": IQLOnline,
    "qgpo": QGPO,
    "qipo": QIPO,
    "sfbc": SfBC,
    "srpo": SRPO,
    "td3_bc": TD3BC,
}


def agent_class(name: str) -> type[Agent]:
    """Return the agent of that name, or of ``path/to/file.py:Name``. Raises UserError where there is none."""
    if name in AGENTS:
        return AGENTS[name]
    if ":" not in name:
        raise UserError(f"no agent is called '{name}'; {nearest(name, AGENTS)}", key="agent")
    found = by_path(name, "agent", __name__)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise UserError(f"'{name}' is not a subclass of rl.agents.base.Agent", key="agent")
    return found

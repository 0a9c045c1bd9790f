"""Which nodes the next attempt avoids, because they refused pods of the job or were lost under it.

Only faults of a node's own kind are recorded: a crash says nothing about the node. `placement.py`
renders the list as node affinity, which excludes a node from its second fault on.
"""

from finetune_api import reasons
from finetune_api.names import MAX_AVOIDED_NODES
from finetune_api.status import AvoidedNode, FineTuneJobStatus
from finetune_operator.plan.placement import REQUIRED_FROM
from finetune_operator.plan.verdict import Verdict


def after(status: FineTuneJobStatus, verdict: Verdict) -> list[AvoidedNode]:
    """Return the nodes to avoid after an attempt that ended with this verdict."""
    known = status.avoided_nodes
    if verdict.reason == reasons.GANG_INCOMPLETE:
        # The gang may have been incomplete because too many nodes were excluded.
        return [node.replace(faults=min(node.faults, REQUIRED_FROM - 1)) for node in known]
    if verdict.node is None or not verdict.ending.blames_node:
        return known
    return with_fault(known, verdict.node, verdict.reason)


def with_fault(known: list[AvoidedNode], name: str, reason: str) -> list[AvoidedNode]:
    """Return the nodes to avoid after one more fault of a node, the newest fault last."""
    before = sum(node.faults for node in known if node.name == name)
    fault = AvoidedNode(name=name, reason=reason, faults=before + 1)
    return [*(node for node in known if node.name != name), fault][-MAX_AVOIDED_NODES:]


def excluded(status: FineTuneJobStatus) -> list[str]:
    """Return the names of the nodes on which no worker may be placed."""
    return [node.name for node in status.avoided_nodes if node.faults >= REQUIRED_FROM]

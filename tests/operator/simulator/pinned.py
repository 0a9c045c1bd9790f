"""Histories that once broke an invariant, or that random ones seldom reach."""

from tests.operator.simulator.events import Config, Event

PINNED: dict[str, tuple[Config, list[Event]]] = {
    "deleted and created again while the old prepare pod exists: two writes alternated": (
        Config(),
        [Event("delete job", True)],
    ),
    "suspended while the watch on pods lags behind a creation: Suspended, and a pod existed": (
        Config(),
        [
            Event("go"),
            Event("exit", (1, 137, True)),
            Event("ends are reported"),
            Event("at call", (7, Event("suspend", True))),
            Event("watch", ("pods", "stall")),
            Event("wait", 70),
        ],
    ),
    "suspended and resumed while the watch on pods lags behind the creation of a gang": (
        Config(),
        [
            Event("go"),
            Event("at call", (2, Event("watch", ("pods", "stall")))),
            Event("go"),
            Event("suspend", True),
            Event("suspend", False),
        ],
    ),
    "evicted and gone: its time was dropped when the attempt was finalized": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("train", 200),
            Event("at call", (2, "too many requests")),
            Event("report", "hangs"),
            Event("go"),
            Event("evict", 1),
        ],
    ),
    "bound and gone while the watch was cut: not charged, and not marked as estimated": (
        Config(),
        [
            *([Event("go")] * 2),
            Event("watch", ("pods", "stall")),
            Event("go"),
            Event("preempt", 0),
            Event("go"),
            Event("watch", ("pods", "cut")),
        ],
    ),
    "a taken name that becomes free: the job was not reconciled again": (
        Config(),
        [Event("delete job", True), Event("at call", (4, "conflict")), Event("go")],
    ),
    "the prepare pod on a lost node: the message was that it prepares": (
        Config(),
        [Event("image missing", 0), Event("lose node", 0)],
    ),
    "preempted with a checkpoint: no restart is counted": (
        Config(),
        [*([Event("go")] * 3), Event("train", 20), Event("preempt", 0), *([Event("go")] * 2)],
    ),
    "a lost worker: the operator must be woken by its clock": (
        Config(),
        [*([Event("go")] * 3), Event("lose node", 1)],
    ),
    "a crash whose final phase follows later: the pod and its log were deleted": (
        Config(),
        [*([Event("go")] * 3), Event("train", 20), Event("exit", (1, 1, True)), Event("wait", 3)],
    ),
    "refused before any container started: the job waited for it for ever": (
        Config(),
        [*([Event("go")] * 2), Event("refuse", 1), Event("wait", 70)],
    ),
    "evicted before any container started: the job waited for it for ever": (
        Config(),
        [*([Event("go")] * 2), Event("start", 1), Event("evict", 1), Event("wait", 70)],
    ),
    "refused after a restart of its kubelet: its time was dropped": (
        Config(replicas=1),
        [*([Event("go")] * 3), Event("train", 200), Event("refuse", 0), Event("go")],
    ),
    "its kubelet lost its container while the operator was away: its time was dropped": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("train", 200),
            Event("exit", (0, 88, True)),
            Event("operator away", True),
            Event("lose container", 1),
            Event("operator away", False),
        ],
    ),
    "drained while its image was pulled: it cost nothing": (
        Config(),
        [Event("go"), Event("image missing", 0), Event("wait", 70), Event("preempt", 0)],
    ),
    "collected after its node was deleted, and kept by a finalizer": (
        Config(),
        [*([Event("go")] * 3), Event("lose node", 1), Event("collect", 1), Event("wait", 70)],
    ),
    "a label of a running worker is removed: a second gang was started beside it": (
        Config(),
        [*([Event("go")] * 3), Event("unlabel", (1, False)), Event("wait", 70)],
    ),
    "all labels of running workers are removed, and the operator is restarted": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("unlabel", (0, True)),
            Event("unlabel", (1, True)),
            Event("restart operator"),
            Event("wait", 70),
        ],
    ),
    "the label of a prepare pod is removed": (Config(), [Event("unlabel", (0, False))]),
    "the node of a lost worker is back: the estimate of its end was kept": (
        Config(policy=(("maxRestarts", 100),)),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("lose node", 1),
            Event("exit", (0, 88, True)),
            Event("go"),
            *([Event("wait", 70)] * 3),
            *([Event("go")] * 3),
            Event("nodes recover"),
            *([Event("go")] * 3),
        ],
    ),
    "a record on storage is older than the last report: it took back what was proved": (
        Config(policy=(("maxRestarts", 100),)),
        [
            *([Event("go")] * 3),
            Event("train", 200),
            Event("train", 20),
            Event("lose node", 0),
            Event("delete node", 0),
            *([Event("go")] * 2),
            Event("wait", 70),
            *([Event("go")] * 3),
            Event("train", 20),
            Event("train", 20),
        ],
    ),
    "an incomplete gang, of which a quota refuses the rest: it kept its nodes": (
        Config(policy=(("gangStartTimeoutSeconds", 60),)),
        [
            Event("go"),
            Event("at call", (11, Event("quota", 1))),
            Event("go"),
            *([Event("wait", 70)] * 3),
        ],
    ),
    "an interval is edited while a quota refuses the rest of a gang": (
        Config(replicas=3, devices=1),
        [
            Event("go"),
            Event("at call", (12, Event("quota", 2))),
            Event("go"),
            Event("edit interval", ("evaluation", 7)),
            Event("quota", None),
            *([Event("go")] * 4),
        ],
    ),
    "an interval is edited after the commit and before the first pod": (
        Config(),
        [
            Event("go"),
            Event("at call", (9, "connection refused")),
            Event("go"),
            Event("edit interval", ("checkpoints", 7)),
            *([Event("go")] * 3),
        ],
    ),
    "pods are created late, with the configuration from before an edit": (
        Config(),
        [
            Event("go"),
            Event("at call", (10, "timeout, the effect comes late")),
            Event("go"),
            Event("at call", (7, Event("late effects arrive"))),
            Event("edit interval", ("evaluation", 7)),
            *([Event("go")] * 4),
        ],
    ),
    "a quota refuses most of a large gang while the scheduler changes its sentence": (
        Config(replicas=24, devices=1),
        [
            Event("go"),
            Event("at call", (33, Event("quota", 2))),
            Event("go"),
            *(step for n in range(16) for step in (Event("unschedulable", n), Event("wait", 1))),
        ],
    ),
    "a webhook for pods is down: the message was that the model is checked": (
        Config(),
        [Event("webhook", 500), Event("delete job", True), Event("wait", 12)],
    ),
    "a webhook for pods is down when a gang begins": (
        Config(),
        [Event("go"), Event("webhook", 503), Event("go"), Event("wait", 30)],
    ),
    "the API server is frozen while a gang is created": (
        Config(replicas=3, devices=1),
        [Event("go"), Event("freeze", 30), Event("go"), Event("go"), Event("wait", 70)],
    ),
    "survivors of a lost node: the gang had ended and claimed to train on": (
        Config(replicas=3, devices=1),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("lose node", 1),
            Event("exit", (0, 88, True)),
            Event("exit", (2, 88, True)),
            Event("wait", 3),
            Event("lost nodes are noticed"),
            Event("go"),
            Event("wait", 70),
        ],
    ),
    "a node that does not answer for a while: it was not named": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("lose node", 1),
            Event("lost nodes are noticed"),
            Event("wait", 12),
            Event("nodes recover"),
            Event("train", 20),
        ],
    ),
    "a worker crashes while the node of another one does not answer": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("lose node", 1),
            Event("go"),
            Event("exit", (0, 1, True)),
        ],
    ),
    "a volume of one worker is not mounted: the message had no reason": (
        Config(),
        [*([Event("go")] * 2), Event("mount fails", 1), Event("go"), Event("wait", 70)],
    ),
    "a volume of the prepare pod is not mounted": (
        Config(),
        [Event("mount fails", 0), Event("wait", 70), Event("wait", 400)],
    ),
    "evicted while it runs: no container of it ever ends": (
        Config(),
        [*([Event("go")] * 3), Event("evict", 1)],
    ),
    "an image that takes 200 s on one node: the gang waits": (
        Config(pulls=(200, 0)),
        [*([Event("go")] * 3), *([Event("wait", 70), Event("go")] * 4)],
    ),
    "a report of workers that wait for an image: they do not hang": (
        Config(pulls=(0, 200), policy=(("progressDeadlineSeconds", 60),)),
        [*([Event("go")] * 3), Event("wait", 170), Event("report", "hangs"), Event("wait", 3)],
    ),
    "one image is never there: the half gang is released": (
        Config(pulls=(0, None), policy=(("gangStartTimeoutSeconds", 60),)),
        [*([Event("go")] * 3), *([Event("wait", 70), Event("go")] * 6)],
    ),
    "workers give up for lack of a peer": (
        Config(pulls=(0, None)),
        [*([Event("go")] * 2), Event("give up often", 4)],
    ),
    "a worker ends with 78 for lack of a peer, and the peer starts": (
        Config(),
        [
            *([Event("go")] * 2),
            Event("start", 0),
            Event("exit", (0, 78, True)),
            Event("start", 1),
            Event("wait", 30),
        ],
    ),
    "stopped before the other worker starts, while a watch is late": (
        Config(),
        [
            *([Event("go")] * 2),
            Event("start", 0),
            Event("watch", ("pods", "stall")),
            Event("preempt", 0),
            Event("start", 1),
            Event("wait", 1),
            Event("watch", ("pods", "flow")),
            Event("go"),
        ],
    ),
    "nodes refuse a worker again and again": (
        Config(),
        [*([Event("go")] * 2), Event("refuse often", 6)],
    ),
    "a worker is bound to a node that is dead": (
        Config(replicas=3, devices=1),
        [
            *([Event("go")] * 2),
            Event("bind to a dead node", 1),
            Event("go"),
            Event("wait", 3),
            Event("go"),
            Event("wait", 12),
        ],
    ),
    "a worker is lost with its node while the model is loaded: the others held their devices": (
        Config(replicas=3, devices=1),
        [
            *([Event("go")] * 3),
            Event("report", "fresh"),
            Event("lose node", 1),
            Event("go"),
            Event("wait", 12),
            *([Event("go"), Event("wait", 70)] * 3),
        ],
    ),
    "no report arrives of a gang that trains, and a worker is drained": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("report", "fresh"),
            Event("report", "unreachable"),
            Event("train", 200),
            Event("preempt", 1),
            Event("wait", 12),
        ],
    ),
    "the operator is restarted during an export, and the other workers were collected": (
        Config(replicas=3, devices=1),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("operator away", True),
            Event("finish"),
            Event("go"),
            Event("ended pods are collected"),
            Event("operator away", False),
            Event("wait", 3),
            Event("report", "fresh"),
            Event("wait", 12),
            Event("restart operator"),
            Event("export ends"),
            Event("wait", 12),
        ],
    ),
    "the node of a worker that has trained is lost during the export": (
        Config(replicas=3, devices=1),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("lose node", 2),
            Event("finish"),
            Event("report", "fresh"),
            Event("preempt", 2),
            Event("wait", 70),
            Event("wait", 70),
            Event("export ends"),
            Event("go"),
        ],
    ),
    "a worker that has trained is refused by its node during the export": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("lose node", 1),
            Event("finish"),
            Event("report", "fresh"),
            Event("collect", 1),
            Event("wait", 12),
            Event("export ends"),
            Event("go"),
        ],
    ),
    "the volume is full in the middle of the run, and the save is shown to fail": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("storage", "full"),
            Event("train", 20),
            Event("wait", 12),
            Event("storage", ""),
            Event("train", 20),
        ],
    ),
    "a kubelet keeps only the beginning of the message of a gang that has trained": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("messages are cut", 300),
            Event("train", 20),
            Event("finish"),
            Event("export ends"),
            Event("go"),
        ],
    ),
    "preparation fails and backs off: the message had no cause": (
        Config(),
        [Event("exit", (0, 137, True)), Event("wait", 3)],
    ),
    "a sidecar outlives the trainer, and its end is seen": (
        Config(sidecar=True),
        [
            *([Event("go")] * 3),
            Event("train", 20),
            Event("exit", (1, 1, True)),
            Event("wait", 30),
            *([Event("go"), Event("wait", 12)] * 3),
        ],
    ),
    "the volume is full at the end of the run": (
        Config(policy=(("maxRestarts", 1),)),
        [*([Event("go")] * 3), Event("train", 20), Event("fill often", 4)],
    ),
    "another job owns the storage": (
        Config(policy=(("maxRestarts", 0),)),
        [Event("storage", "in use"), *([Event("go"), Event("go"), Event("wait", 400)] * 4)],
    ),
    "the owner of the storage comes back between two attempts": (
        Config(policy=(("maxRestarts", 0),)),
        [
            *([Event("go")] * 2),
            Event("storage", "in use"),
            *([Event("go"), Event("wait", 400)] * 4),
        ],
    ),
    "the prepare pod is evicted again and again": (
        Config(),
        [Event("evict often", 8)],
    ),
    "the prepare pod is deleted by force again and again": (
        Config(),
        [Event("delete often", 8)],
    ),
    "a quota has room for half of a gang: it was created and held its devices": (
        Config(),
        [Event("go"), Event("quota", 1), *([Event("go")] * 3), Event("wait", 30)],
    ),
    "a pod of the job before stays on a lost node: the other worker held its devices": (
        Config(),
        [
            *([Event("go")] * 3),
            Event("lose node", 1),
            Event("delete job", True),
            *([Event("go")] * 4),
            Event("wait", 30),
        ],
    ),
}

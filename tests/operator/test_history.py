"""Random histories of a job: whatever pods, reports and clocks do, these things stay true."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.observe import Job, Pod, World
from finetune_operator.plan.planner import plan
from tests.operator import worlds
from tests.operator.worlds import SETTINGS, at, ended, prepared, progressed, result

EVENTS = ("run", "crash", "stop", "delete", "finish", "vanish", "evict", "nothing")


@dataclass
class Model:
    """A cluster with one job: pods are created, move and go as the history says."""

    job: Job = field(default_factory=worlds.make_job)
    pods: dict[str, Pod] = field(default_factory=dict)
    now: float = 0.0
    step: int = 0

    def world(self) -> World:
        return World(self.job, tuple(self.pods.values()), at(self.now))

    def reconcile(self) -> None:
        """Until nothing more is decided at this moment."""
        for _ in range(20):
            before = self.job.status
            decision = plan(self.world(), SETTINGS)
            check_step(before, decision.status)
            self.job = self.job.with_status(decision.status)
            self.act(decision)
            if not decision.commits:
                assert decision.requeue_after != 0, "a look that changes nothing must not spin"
            if decision.status == before and not decision.acts:
                return
        raise AssertionError("it never comes to rest")

    def act(self, decision) -> None:
        for item in decision.create:
            if item["kind"] == "Pod":
                name = item["metadata"]["name"]
                uid = f"{name}-{self.now}"
                item = item | {"metadata": item["metadata"] | {"uid": uid}, "status": {}}
                if name not in {p.name for p in self.pods.values() if not p.gone}:
                    self.pods[uid] = Pod.of(item)
        for doomed in decision.delete:
            pod = self.pods[doomed.uid]
            assert not pod.deletion, "deleted once is enough"
            if pod.running:
                self.pods[doomed.uid] = replace(pod, deletion=at(self.now + (doomed.grace or 30)))
            else:
                self.pods[doomed.uid] = replace(pod, gone=True, deletion=at(self.now))

    def happen(self, event: str, index: int) -> None:
        live = [p for p in self.pods.values() if not p.gone and not p.ended and not p.trouble]
        if not live:
            return
        pod = live[index % len(live)]
        self.pods[pod.uid] = self.moved(pod, event)

    def moved(self, pod: Pod, event: str) -> Pod:
        if pod.role == "prepare":
            return ended(pod, 0, self.now, result(prepared=prepared()))
        if event == "run" or not pod.running:
            bound = pod.scheduled or at(self.now)
            return replace(pod, running=True, phase="Running", scheduled=bound, ip="1.2.3.4")
        self.step += 3
        said = progressed(self.step, saved=self.step - 1) if pod.index == 0 else {}
        if event == "crash":
            return ended(pod, 1, self.now, result("Failed", reason="Crashed", **said))
        if event == "stop":
            return ended(pod, 75, self.now, result("Stopped", reason="Stopped", **said))
        if event == "finish":
            output = {"output": worlds.OUTPUT} if pod.index == 0 else {}
            return ended(pod, 0, self.now, result(**said, **output))
        if event == "delete":
            # A second deletion never gives more time than the first.
            return pod if pod.deletion else replace(pod, deletion=at(self.now + 30))
        if event == "evict":
            return replace(pod, running=False, phase="Failed", trouble=("Evicted", "disk"))
        if event == "vanish":
            return pod.vanished()
        return pod


def check_step(old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
    """From one status to the next."""
    if old.finished:
        assert new == old, "finished is final"
    assert new.restarts >= old.restarts
    assert (new.attempt or 0) in ((old.attempt or 0), (old.attempt or 0) + 1)
    if old.usage and new.usage:
        assert new.usage.device_seconds >= old.usage.device_seconds, "usage never shrinks"
    if new.usage:
        parts = new.usage
        assert parts.device_seconds == (
            parts.productive_device_seconds
            + parts.lost_device_seconds
            + parts.overhead_device_seconds
        )
        assert parts.overhead_device_seconds >= 0


def check_world(model: Model) -> None:
    """At every moment."""
    alive = {
        pod.attempt
        for pod in model.pods.values()
        if pod.role == "worker" and not pod.over(at(model.now))
    }
    assert len(alive) <= 1, "never two gangs"
    if model.job.status.attempt:
        assert all(attempt <= model.job.status.attempt for attempt in alive)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3), st.integers(0, 40)), max_size=60)
)
def test_no_history_breaks_an_invariant(history):
    model = Model()
    model.reconcile()
    for event, index, seconds in history:
        model.now += seconds
        model.happen(event, index)
        model.reconcile()
        check_world(model)
    settle(model)
    assert model.job.status.finished, model.job.status.message


def settle(model: Model) -> None:
    """From here on everything goes well: the job must come to an end."""
    for _ in range(40):
        model.now += 400
        for pod in list(model.pods.values()):
            if pod.gone:
                continue
            if pod.deletion and at(model.now) > pod.deletion:
                model.pods[pod.uid] = pod.vanished()
            elif not pod.ended and not pod.trouble:
                model.pods[pod.uid] = model.moved(pod, "finish")
        model.reconcile()
        if model.job.status.finished:
            return

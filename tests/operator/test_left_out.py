"""What the prepare pod left out or doubts becomes events."""

from finetune_operator.plan import events
from tests.operator.worlds import ended, look, make_job, prepare_pod, prepared, result

LEFT_OUT = [
    {"file": "pvc://w/a.jsonl", "row": "line 7", "why": "no assistant turn to learn from"},
    {"file": "pvc://w/b.jsonl", "why": "no row in it"},
]


def test_what_was_left_out_and_what_is_doubtful_are_events():
    job = make_job()
    found = prepared(left_out=LEFT_OUT, warnings=["pvc://w/b.jsonl has no row"])
    decision = look(job, ended(prepare_pod(job), 0, 5, result(prepared=found)), now=6)
    first, second, *_ = events.between(job.status, decision.status, decision.prepared)
    assert (first.kind, first.reason) == ("Normal", "Prepared")
    assert first.message.endswith(
        "; the first: pvc://w/a.jsonl line 7: no assistant turn to learn from; pvc://w/b.jsonl: no "
        "row in it"
    )
    assert (second.kind, second.reason, second.message) == (
        "Warning",
        "DataDoubtful",
        "pvc://w/b.jsonl has no row",
    )


def test_an_event_of_many_names_is_bounded():
    job = make_job()
    many = [{"file": "pvc://w/" + "x" * 200, "row": "line 7", "why": "y" * 100}] * 12
    decision = look(
        job, ended(prepare_pod(job), 0, 5, result(prepared=prepared(left_out=many))), now=6
    )
    first, *_ = events.between(job.status, decision.status, decision.prepared)
    assert len(first.message) == 1024

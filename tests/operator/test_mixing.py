"""Weighted sources: the plan has the rows of an epoch, and small sources cause a warning."""

from typing import Any

from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import events
from finetune_operator.plan.inputs import claims
from finetune_operator.plan.resolve import resolve
from tests.operator import worlds

ROWS = (900, 50)


def data(epoch_rows: int | None) -> DataSummary:
    sources = [
        SourceSummary(source=f"pvc://w/{number}.jsonl", rows=rows, examples=rows)
        for number, rows in enumerate(ROWS)
    ]
    return DataSummary(
        examples=950,
        rows=950,
        epoch_rows=epoch_rows,
        tokens=1000,
        trained_tokens=500,
        packing_efficiency=0.9,
        sources=sources,
    )


def dataset(*weights: float | None) -> dict[str, Any]:
    train = [{"source": f"pvc://w/{n}.jsonl", "weight": w} for n, w in enumerate(weights)]
    return {"train": train}


def resolved(epoch_rows: int, *weights: float | None, **training: Any) -> tuple[Any, DataSummary]:
    training = {"globalBatchSize": 8, "epochs": 3.0, **training}
    job = worlds.make_job(dataset=dataset(*weights), training=training)
    return resolve(job.spec, worlds.prepared(data=data(epoch_rows)), {})


def test_without_weights_an_epoch_is_every_row_once() -> None:
    plan, found = resolved(950, None, None)
    assert (found.steps_per_epoch, plan.total_steps) == (119, 357)
    assert [source.passes for source in found.sources] == [3.0, 3.0]


def test_with_weights_an_epoch_is_longer_and_repeats_small_sources() -> None:
    plan, found = resolved(1000, 0.9, 0.1)
    assert (found.steps_per_epoch, plan.total_steps) == (125, 375)
    assert [source.passes for source in found.sources] == [3.0, 6.0]
    _, found = resolved(1000, 0.9, 0.1, epochs=None, maxSteps=25)
    assert [source.passes for source in found.sources] == [0.2, 0.4]


def test_sources_that_did_not_fit_into_the_message_have_no_passes() -> None:
    job = worlds.make_job(dataset=dataset(0.9, 0.1), training={"globalBatchSize": 8})
    cut = data(1000).replace(sources=[])
    _, found = resolve(job.spec, worlds.prepared(data=cut), {})
    assert (found.steps_per_epoch, found.sources) == (125, [])


def test_a_source_that_is_repeated_too_often_causes_a_warning() -> None:
    _, found = resolved(1000, 0.9, 0.1)
    found_events = events.between(FineTuneJobStatus(), FineTuneJobStatus(attempt=1, data=found))
    (warning,) = [event for event in found_events if event.kind == "Warning"]
    assert (warning.reason, warning.message) == (
        "SourceRepeats",
        "rows are seen more than 4 times: pvc://w/1.jsonl 6 times; lower the source's weight or "
        "training.epochs, or add data",
    )
    _, usual = resolved(950, None, None)
    found_events = events.between(FineTuneJobStatus(), FineTuneJobStatus(attempt=1, data=usual))
    assert [event.kind for event in found_events if event.reason == "Prepared"] == ["Normal"]
    assert not [event for event in found_events if event.kind == "Warning"]


def test_the_claim_of_a_chat_template_is_mounted() -> None:
    chosen = dataset(None) | {"chatTemplate": {"path": "pvc://templates/a.jinja"}}
    found = claims(worlds.make_job(dataset=chosen))
    assert found["templates"] is True  # read-only

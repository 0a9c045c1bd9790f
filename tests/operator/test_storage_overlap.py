"""A run never writes among the files that it reads."""

import pytest

from tests.operator.worlds import condition, look, make_job

MODEL = {"source": "pvc://w/models/base"}


def job(storage="pvc://w/runs/a", *data, **more):
    train = [{"source": source} for source in data or ("pvc://w/data/train.jsonl",)]
    spec = {"model": MODEL, "dataset": {"train": train}, "checkpoints": {"storage": storage}}
    return make_job(**(spec | more))


HARM = "files of the run would be written among the inputs; choose another folder"
REFUSED = {
    "the model folder": (
        job("pvc://w/models/base"),
        f"checkpoints.storage pvc://w/models/base is model.source: {HARM}",
    ),
    "the model folder in another form": (
        job("pvc://w//models/./base/"),
        f"checkpoints.storage pvc://w/models/base is model.source: {HARM}",
    ),
    "a folder in the model folder": (
        job("pvc://w/models/base/runs/a"),
        "checkpoints.storage pvc://w/models/base/runs/a is in model.source "
        f"(pvc://w/models/base): {HARM}",
    ),
    "the data folder": (
        job("pvc://w/data", "pvc://w/data/"),
        f"checkpoints.storage pvc://w/data is dataset.train[0].source: {HARM}",
    ),
    "the folder of a data file": (
        job("pvc://w/data", "pvc://w/other", "pvc://w/data/train.jsonl"),
        "checkpoints.storage pvc://w/data is the folder of dataset.train[1].source "
        f"(pvc://w/data/train.jsonl): {HARM}",
    ),
    "the folder of a pattern": (
        job("pvc://w/data", "pvc://w/data/*.parquet"),
        "checkpoints.storage pvc://w/data is the folder of dataset.train[0].source "
        f"(pvc://w/data/*.parquet): {HARM}",
    ),
    "a folder that a pattern may find": (
        job("pvc://w/data/runs", "pvc://w/data/*/*.jsonl"),
        "checkpoints.storage pvc://w/data/runs is in dataset.train[0].source "
        f"(pvc://w/data/*/*.jsonl): {HARM}",
    ),
    "a folder in the folder of validation data": (
        job(
            "pvc://w/held-out/run",
            dataset={
                "train": [{"source": "pvc://w/data"}],
                "validation": [{"source": "pvc://w/held-out"}],
            },
        ),
        "checkpoints.storage pvc://w/held-out/run is in dataset.validation[0].source "
        f"(pvc://w/held-out): {HARM}",
    ),
    "the cache in the data folder": (
        job("pvc://w/runs/a", "pvc://w/data", cache="pvc://w/data/cache"),
        f"cache pvc://w/data/cache is in dataset.train[0].source (pvc://w/data): {HARM}",
    ),
    "the model in the folder of the finished model": (
        job("pvc://w/models", model={"source": "pvc://w/models/final"}),
        "model.source pvc://w/models/final is in pvc://w/models/final, which the run replaces; "
        "choose another folder for checkpoints.storage",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_among_the_inputs_is_refused_before_anything_is_created(name):
    refused, message = REFUSED[name]
    decision = look(refused)
    assert decision.create == []
    assert decision.check is None
    accepted = condition(decision.status, "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "StorageOverlapsInput")
    assert decision.status.message == message


ALLOWED = {
    "beside the inputs": job(),
    "the same path on another claim": job("pvc://v/models/base"),
    "a name that begins alike": job("pvc://w/models/base-2"),
    "the folder above the model folder": job("pvc://w/models"),
    "a folder beside a data file": job("pvc://w/data/runs"),
    "a folder beside what a pattern finds": job("pvc://w/data/runs", "pvc://w/data/*.jsonl"),
    "remote inputs": job(model={"source": "hf://org/model"}),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_other_folders_are_accepted(name):
    assert look(ALLOWED[name]).create

"""The defaults that the documentation gives for fields that are not set."""

import pytest

from finetune_operator.plan.resolve import rescaled, resolve
from tests.operator import worlds

CONTINUED = {"objective": "ContinuedPretraining"}
RATES = {
    "135M": (135e6, {}, 2.0e-5),
    "just below 2e9": (1.99e9, {}, 2.0e-5),
    "8B": (8e9, {}, 1.0e-5),
    "15B": (15e9, {}, 1.0e-5),
    "70B": (70e9, {}, 5.0e-6),
    "135M, continued": (135e6, CONTINUED, 4.0e-5),
    "70B, continued": (70e9, CONTINUED, 1.0e-5),
    "set": (70e9, {"learningRate": 3.0e-4}, 3.0e-4),
    "set, continued": (70e9, {"learningRate": 3.0e-4, **CONTINUED}, 3.0e-4),
}


@pytest.mark.parametrize(("parameters", "training", "rate"), RATES.values(), ids=RATES.keys())
def test_learning_rates(parameters: float, training: dict, rate: float) -> None:
    job = worlds.make_job(training=training)
    plan, _ = resolve(job.spec, worlds.prepared(parameter_count=int(parameters)), {})
    assert plan.learning_rate == pytest.approx(rate)


BETAS = {
    "not set": ({}, 0.999),
    "continued": (CONTINUED, 0.95),
    "set": ({"optimizer": {"beta2": 0.98}}, 0.98),
    "set, continued": ({"optimizer": {"beta2": 0.98}, **CONTINUED}, 0.98),
}


@pytest.mark.parametrize(("training", "beta2"), BETAS.values(), ids=BETAS.keys())
def test_second_betas(training: dict, beta2: float) -> None:
    assert worlds.make_job(training=training).spec.training.beta2 == beta2


def test_a_model_that_is_exact_alone_gets_one_document_per_forward_pass() -> None:
    job = worlds.make_job(deepspeed={"microBatchSize": 4})
    plan, _ = resolve(job.spec, worlds.prepared(forward_pass="Document"), {})
    assert (plan.forward_pass, plan.micro_batch_size) == ("Document", 1)
    again = rescaled(plan, job.spec, None)
    assert (again.forward_pass, again.micro_batch_size) == ("Document", 1)


@pytest.mark.parametrize("found", ["Rows", None])
def test_other_models_get_the_rows_of_the_spec(found: str | None) -> None:
    job = worlds.make_job(deepspeed={"microBatchSize": 4})
    plan, _ = resolve(job.spec, worlds.prepared(forward_pass=found), {})
    assert (plan.forward_pass, plan.micro_batch_size) == (found, 4)

"""Tests that every template leads to pods or to a message, and never to a crash."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.names import ANNOTATION_TEMPLATE
from finetune_operator.plan.observe import Job
from tests.operator.worlds import committed, condition, look, make_job, suspended
from tests.security.templates import ADMITTED, BROKEN


def job(template: Any) -> Job:
    return make_job(workers={"replicas": 2, "template": template})


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_template_is_refused_with_the_name_of_the_field(name):
    template, field = BROKEN[name]
    decision = look(job(template))
    assert decision.create == []
    accepted = condition(decision.status, "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "InvalidTemplate")
    assert accepted.message.startswith(f"workers.template.{field} must be ")


def test_a_very_deeply_nested_template_is_refused():
    template: Any = {}
    for _ in range(150):
        template = {"spec": template}
    assert "deeper than 32 levels" in (look(job(template)).status.message or "")


def test_a_job_whose_template_broke_while_suspended_waits_until_it_is_fixed():
    """The gang is gone, and the next one cannot be created from the current spec."""
    first = committed()
    attempt = first.status.attempts[0].replace(outcome="Suspended", settled=True)
    status = first.status.replace(
        attempts=[attempt], next_attempt_time=first.status.attempts[0].start_time
    )
    broken = job({"spec": {"volumes": "scratch"}}).with_status(status)
    decision = look(broken)
    assert decision.status.attempt == 1
    assert condition(decision.status, "Accepted").reason == "InvalidTemplate"
    assert look(suspended(broken)).status.phase == "Suspended"


def test_a_null_field_is_treated_as_unset():
    (nulls,), (nothing,) = (look(job(template)).create for template in (ADMITTED["nulls"], {}))
    for pod in (nulls, nothing):
        # This digest is computed from the template as it was written.
        del pod["metadata"]["annotations"][ANNOTATION_TEMPLATE]
    assert nulls == nothing


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ("name", "env", "envFrom", "volumeMounts", "mountPath", "limits", "capabilities")
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
CONTAINER = ANY_VALUE | st.fixed_dictionaries(
    {"name": st.just("trainer")},
    optional={
        key: ANY_VALUE
        for key in ("env", "envFrom", "volumeMounts", "resources", "securityContext", "ports")
    },
)
TEMPLATE = st.fixed_dictionaries(
    {},
    optional={
        "metadata": ANY_VALUE,
        "spec": ANY_VALUE
        | st.fixed_dictionaries(
            {},
            optional={
                "containers": ANY_VALUE | st.lists(CONTAINER, max_size=2),
                "initContainers": ANY_VALUE | st.lists(CONTAINER, max_size=2),
                "volumes": ANY_VALUE,
                "securityContext": ANY_VALUE,
                "tolerations": ANY_VALUE,
            },
        ),
    },
)


@settings(max_examples=150)
@given(TEMPLATE)
def test_any_template_is_rendered_or_refused(template):
    decision = look(job(template))
    accepted = condition(decision.status, "Accepted")
    assert bool(decision.create) == (accepted.status == "True")
    assert json.dumps(decision.create)
    if not decision.create:
        assert accepted.reason == "InvalidTemplate"

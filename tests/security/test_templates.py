"""A template of any shape ends in pods or in a message; it never ends the operator."""

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
def test_a_template_of_another_shape_is_refused_with_the_name_of_the_field(name):
    template, field = BROKEN[name]
    decision = look(job(template))
    assert decision.create == []
    accepted = condition(decision.status, "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "InvalidTemplate")
    assert accepted.message.startswith(f"workers.template.{field} must be ")


def test_a_template_nested_without_end_is_refused():
    template: Any = {}
    for _ in range(150):
        template = {"spec": template}
    assert "deeper than 32 levels" in (look(job(template)).status.message or "")


def test_a_template_broken_while_suspended_waits_to_be_mended():
    """The gang is gone; the next one cannot be made of what the spec says now."""
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


def test_a_field_without_a_value_is_no_field():
    (nulls,), (nothing,) = (look(job(template)).create for template in (ADMITTED["nulls"], {}))
    for pod in (nulls, nothing):
        del pod["metadata"]["annotations"][ANNOTATION_TEMPLATE]  # of what was written, word by word
    assert nulls == nothing


NASTY = st.recursive(
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
CONTAINER = NASTY | st.fixed_dictionaries(
    {"name": st.just("trainer")},
    optional={
        key: NASTY
        for key in ("env", "envFrom", "volumeMounts", "resources", "securityContext", "ports")
    },
)
TEMPLATE = st.fixed_dictionaries(
    {},
    optional={
        "metadata": NASTY,
        "spec": NASTY
        | st.fixed_dictionaries(
            {},
            optional={
                "containers": NASTY | st.lists(CONTAINER, max_size=2),
                "initContainers": NASTY | st.lists(CONTAINER, max_size=2),
                "volumes": NASTY,
                "securityContext": NASTY,
                "tolerations": NASTY,
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

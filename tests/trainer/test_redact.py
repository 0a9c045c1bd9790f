"""No secret of a tracker gets into the log."""

import logging

import pytest

from finetune_trainer.common.redact import redacted
from tests.trainer.test_sink import Sink, told

ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "https://ann:s3cret@mlflow.example",
    "MLFLOW_TRACKING_PASSWORD": "s3cret",
    "MLFLOW_TRACKING_TOKEN": "s3cret-and-more\n",  # as `echo | base64` leaves it
    "WANDB_API_KEY": "0123456789abcdef",
    "SOME_PASSWORD": "a",
    "TOKENIZERS_PARALLELISM": "false",
}
# what a library says -> what the log says
SAID: dict[str, tuple[str, str]] = {
    "user and password of an address": (
        "GET https://bob:hunter2@host:5000/api failed",
        "GET https://***@host:5000/api failed",
    ),
    "a token of an address": ("no route to http://abc123@host", "no route to http://***@host"),
    "a password with an @": ("see https://bob:p@ss@host/x", "see https://***@host/x"),
    "two addresses": ("http://a:b@x http://c:d@y/z", "http://***@x http://***@y/z"),
    "an address without a user": (
        "https://host/x?mail=ann@example.org is gone",
        "https://host/x?mail=ann@example.org is gone",
    ),
    "a secret by itself": ("key 0123456789abcdef is not valid", "key *** is not valid"),
    "the longer of two secrets": ("401 for s3cret-and-more", "401 for ***"),
    "a value too short to hide": ("a password is wrong", "a password is wrong"),
    "no secret": ("parallelism is false", "parallelism is false"),
}


@pytest.mark.parametrize(("text", "expected"), SAID.values(), ids=SAID.keys())
def test_secrets_are_left_out(text: str, expected: str) -> None:
    assert redacted(text, ENVIRONMENT) == expected


class Telltale(Sink):
    """A tracker whose errors hold all that it knows."""

    def _do(self, what: str) -> None:
        raise ConnectionError("POST https://ann:s3cret@host/api with key 0123456789abcdef")


def test_the_log_of_a_tracker_that_fails_has_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", ENVIRONMENT["WANDB_API_KEY"])
    with caplog.at_level(logging.ERROR):
        told(Telltale(), 1)
    (record,) = caplog.records
    assert "POST https://***@host/api with key ***)" in record.getMessage()

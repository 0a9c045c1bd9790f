"""Secrets of trackers do not appear in the log."""

import logging

import pytest

from finetune_trainer.tracking.sink import redacted
from tests.trainer.test_sink import Sink, run_attempt

ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "https://ann:s3cret@mlflow.example",
    "MLFLOW_TRACKING_PASSWORD": "s3cret",
    "MLFLOW_TRACKING_TOKEN": "s3cret-and-more\n",  # as `echo | base64` leaves it
    "WANDB_API_KEY": "0123456789abcdef",
    "SOME_PASSWORD": "a",
    "TOKENIZERS_PARALLELISM": "false",
}
# name -> message of a library, message in the log
MESSAGES: dict[str, tuple[str, str]] = {
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
    "a secret in plain text": ("key 0123456789abcdef is not valid", "key *** is not valid"),
    "the longer of two secrets": ("401 for s3cret-and-more", "401 for ***"),
    "a value too short to hide": ("a password is wrong", "a password is wrong"),
    "no secret": ("parallelism is false", "parallelism is false"),
}


@pytest.mark.parametrize(("text", "expected"), MESSAGES.values(), ids=MESSAGES.keys())
def test_secrets_are_replaced(text: str, expected: str) -> None:
    assert redacted(text, ENVIRONMENT) == expected


class LeakingSink(Sink):
    """A tracker whose errors contain its secrets."""

    def _do(self, what: str) -> None:
        raise ConnectionError("POST https://ann:s3cret@host/api with key 0123456789abcdef")


def test_errors_of_a_tracker_are_logged_without_its_secrets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", ENVIRONMENT["WANDB_API_KEY"])
    with caplog.at_level(logging.ERROR):
        run_attempt(LeakingSink(), 1)
    (record,) = caplog.records
    assert "POST https://***@host/api with key ***)" in record.getMessage()

"""What is printed of a log after its stream was interrupted."""

import pytest

from finetune_cli.logs import Printed

LINES = [f"2026-01-01 00:{n // 60:02}:{n % 60:02} step {n}\n".encode() for n in range(2000)]


def printed_log(*pieces: bytes) -> Printed:
    """Return the state after some pieces were printed."""
    printed = Printed()
    for piece in pieces:
        printed.add(piece)
    return printed


@pytest.mark.parametrize("cut", [0, 1, 20, 4096, 5000, 50_000])
def test_an_unchanged_log_continues_where_it_was_interrupted(cut):
    log = b"".join(LINES)
    assert printed_log(log[: cut // 2], log[cut // 2 : cut]).rest(log) == log[cut:]


@pytest.mark.parametrize("printed", [1001, 1003, 1900])
def test_nothing_of_a_rotated_log_is_repeated(printed):
    """The node has only the lines from 1000 on; `printed` lines were printed before."""
    rotated = b"".join(LINES[1000:])
    assert printed_log(*LINES[:printed]).rest(rotated) == b"".join(LINES[printed:])


def test_all_of_a_log_rotated_beyond_the_position_is_printed():
    rotated = b"".join(LINES[1000:])
    assert printed_log(*LINES[:10]).rest(rotated) == rotated
    assert printed_log(*LINES[:1500]).rest(b"".join(LINES[1600:])) == b"".join(LINES[1600:])


def test_a_short_log_that_replaced_a_longer_one_is_printed():
    assert printed_log(*LINES[:1500]).rest(b"new\n") == b"new\n"

"""Where the log of a pod goes on after its stream was cut."""

import pytest

from finetune_cli.logs import Shown

LINES = [f"2026-01-01 00:{n // 60:02}:{n % 60:02} step {n}\n".encode() for n in range(2000)]


def shown(*pieces: bytes) -> Shown:
    """After some pieces were printed."""
    found = Shown()
    for piece in pieces:
        found.add(piece)
    return found


@pytest.mark.parametrize("cut", [0, 1, 20, 4096, 5000, 50_000])
def test_the_same_file_goes_on_where_it_was_left(cut):
    whole = b"".join(LINES)
    assert shown(whole[: cut // 2], whole[cut // 2 : cut]).rest(whole) == whole[cut:]


@pytest.mark.parametrize("printed", [1001, 1003, 1900])
def test_a_log_that_was_rotated_repeats_nothing(printed):
    """The node has only what came after line 1000; `printed` lines were shown before the cut."""
    known = b"".join(LINES[1000:])
    assert shown(*LINES[:printed]).rest(known) == b"".join(LINES[printed:])


def test_a_log_that_was_rotated_beyond_the_place_is_shown_whole():
    known = b"".join(LINES[1000:])
    assert shown(*LINES[:10]).rest(known) == known
    assert shown(*LINES[:1500]).rest(b"".join(LINES[1600:])) == b"".join(LINES[1600:])


def test_a_short_log_that_replaced_a_longer_one_is_shown():
    assert shown(*LINES[:1500]).rest(b"anew\n") == b"anew\n"

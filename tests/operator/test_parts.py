"""However a part of the operator ends, the operator ends with it."""

import asyncio

import pytest

from finetune_operator.parts import PartEndedError, at_most, forever


async def returns():
    return None


async def cancels_itself():
    raise asyncio.CancelledError


async def fails():
    raise ZeroDivisionError


ENDS = {
    "it returns": (returns, PartEndedError),
    "it raises CancelledError": (cancels_itself, PartEndedError),
    "it fails": (fails, ZeroDivisionError),
}


@pytest.mark.parametrize(("part", "error"), ENDS.values(), ids=ENDS.keys())
async def test_each_end_of_a_part_ends_the_group(part, error):
    others = []

    async def operate():
        async with asyncio.TaskGroup() as group:
            others.append(group.create_task(asyncio.sleep(60)))
            group.create_task(forever("the part", part()))

    with pytest.raises(ExceptionGroup) as raised:
        await operate()
    assert raised.group_contains(error)
    assert others[0].cancelled()


async def test_an_error_while_a_part_cleans_up_ends_the_group():
    async def renew():
        raise ZeroDivisionError

    async def lead():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forever("renewal", renew()))
                group.create_task(forever("worker", asyncio.sleep(60)))
        finally:
            # What asyncio.timeout does here on Python 3.11.2.
            raise asyncio.CancelledError

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever("leader", lead()))
    assert raised.group_contains(PartEndedError, match="leader was cancelled")


async def test_a_part_that_is_cancelled_cleans_up_first():
    cleaned = []

    async def part():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    task = asyncio.create_task(forever("the part", part()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_an_error_during_the_clean_up_of_a_stopped_part_is_logged(caplog):
    async def part():
        try:
            await asyncio.sleep(60)
        finally:
            raise ZeroDivisionError

    task = asyncio.create_task(forever("the part", part()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "the part failed while it was stopped" in caplog.text


async def test_clean_up_work_has_its_time_limits_in_a_cancelled_task():
    done = []

    async def work():
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
        done.append(True)

    async def part():
        try:
            await asyncio.sleep(60)
        finally:
            done.append(await at_most(5.0, work()))
            done.append(await at_most(0.01, asyncio.sleep(60)))

    task = asyncio.create_task(part())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True, True, False]


async def test_an_error_of_clean_up_work_is_raised():
    with pytest.raises(ZeroDivisionError):
        await at_most(5.0, fails())

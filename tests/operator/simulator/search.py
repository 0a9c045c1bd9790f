"""Random histories through hypothesis, from a seed: the same seed makes the same histories."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from tests.operator.simulator.events import CONFIGS, HISTORIES, Config, Event, readable
from tests.operator.simulator.world import run


class FoundError(AssertionError):
    """A history that breaks an invariant, as small as hypothesis could make it."""

    def __init__(self, problem: Exception, config: Config, history: list[Event]) -> None:
        told = f"{type(problem).__name__}: {problem}"
        super().__init__(f"{told}\n\n{readable(config, history)}")
        self.problem = problem


def search(
    number: int,
    histories: int,
    progress: Callable[[], None] = lambda: None,
    *,
    shrink: bool = True,
) -> None:
    """Run that many histories of a seed; FoundError tells the first that failed."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @seed(number)
    @settings(
        max_examples=histories,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    @given(st.sampled_from(CONFIGS), HISTORIES)
    def histories_of_seed(config: Config, history: list[Event]) -> Any:
        progress()
        try:
            run(config, history)
        except Exception as error:
            raise FoundError(error, config, history) from error

    with _only_by_the_seed():
        histories_of_seed()


@contextmanager
def _only_by_the_seed() -> Iterator[None]:
    """Hypothesis mixes in numbers that stand in the source of whatever local modules are loaded.

    With them a seed would make other histories in every process.
    """
    original = providers._get_local_constants
    providers._get_local_constants = Constants
    try:
        yield
    finally:
        providers._get_local_constants = original

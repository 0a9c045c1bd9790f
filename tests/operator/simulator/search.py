"""Random histories from hypothesis. The same seed gives the same histories."""

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
    """A history that breaks an invariant, shrunk by hypothesis."""

    def __init__(self, problem: Exception, config: Config, history: list[Event]) -> None:
        text = f"{type(problem).__name__}: {problem}"
        super().__init__(f"{text}\n\n{readable(config, history)}")
        self.problem = problem


def search(
    number: int,
    histories: int,
    progress: Callable[[], None] = lambda: None,
    *,
    shrink: bool = True,
) -> None:
    """Run that many histories of a seed; raise FoundError with the first one that fails."""
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

    with _reproducible():
        histories_of_seed()


@contextmanager
def _reproducible() -> Iterator[None]:
    """Keep hypothesis from using constants in the source of the local modules that are loaded.

    With them, the same seed would give other histories in every process.
    """
    original = providers._get_local_constants
    providers._get_local_constants = Constants
    try:
        yield
    finally:
        providers._get_local_constants = original

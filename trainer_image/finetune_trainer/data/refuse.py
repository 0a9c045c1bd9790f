"""How rows are refused: where, what was found, what to do."""

from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError


class UnfitRowError(TrainerError):
    """A row that can be read and not be rendered: left out and counted, an end above 5 %."""


def bad_data(where: str, problem: str, remedy: str) -> TrainerError:
    """A row or file that cannot be read ends the job."""
    return TrainerError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def unfit(where: str, problem: str, remedy: str) -> UnfitRowError:
    """A row that the chat template does not take."""
    return UnfitRowError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def kind(value: Any) -> str:
    """What people call the type of a JSON value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")

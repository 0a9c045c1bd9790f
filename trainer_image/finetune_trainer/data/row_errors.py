"""The errors of rows and files of data: where, what was found, what to do."""

from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError


class UnfitRowError(TrainerError):
    """A row that can be read but not rendered. It is dropped and counted; above 5 % the job fails.

    See `ExampleCounts.check`.
    """


def bad_data(where: str, problem: str, remedy: str) -> TrainerError:
    """Return the error of a row or file that cannot be read, which ends the job."""
    return TrainerError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def unfit(where: str, problem: str, remedy: str) -> UnfitRowError:
    """Return the error of a row that the chat template cannot render."""
    return UnfitRowError(ExitCode.BAD_DATA, f"{where}: {problem}; {remedy}")


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")

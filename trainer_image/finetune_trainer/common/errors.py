"""The one exception that ends a trainer process in a planned way."""

from typing import Any

from finetune_api.exit_codes import ExitCode, meaning


class TrainerError(Exception):
    """An end that somebody can act on: exit code, reason and a message for people.

    The message names the file or field, what was found, what is allowed and what to do.
    """

    def __init__(self, code: ExitCode, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or meaning(code).reason
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders."""
        return type(self), (self.code, self.message, self.reason)

"""The exception that ends a trainer process in a planned way, and errors of unreadable inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api.exit_codes import ExitCode, meaning


class TrainerError(Exception):
    """A planned end of a process: an exit code, a reason and a message for users.

    The message names the file or field, what was found, what is allowed and what to do.
    """

    def __init__(self, code: ExitCode, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or meaning(code).reason
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the error in another process."""
        return type(self), (self.code, self.message, self.reason)


def one_line(error: Exception) -> str:
    """Return the text of another program's error on one line, at most 300 characters of it."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def unreadable(name: str, error: OSError) -> TrainerError:
    """Return the TrainerError of an input that cannot be read: 77 if rights are missing, else 66.

    `name` is the name of the input in messages, for example its pvc:// address.
    """
    if isinstance(error, PermissionError):
        return TrainerError(
            ExitCode.NOT_PERMITTED,
            f"{name}: no permission to read {error.filename or 'it'}; make it readable for "
            "all users (chmod -R a+rX), or let the pod's group own the volume "
            "(template.spec.securityContext.fsGroup)",
        )
    where = f" ({error.filename})" if error.filename else ""
    return TrainerError(
        ExitCode.INPUT_MISSING,
        f"{name}: cannot be read{where}: {error.strerror or error}; check the volume, or copy "
        "the files again",
    )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Translate an OSError of the input `name` into a TrainerError. See `unreadable`."""
    try:
        yield
    except OSError as error:
        raise unreadable(name, error) from error

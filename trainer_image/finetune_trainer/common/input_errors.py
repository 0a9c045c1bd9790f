"""Inputs that are there and cannot be read, said in words."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns an OSError into a TrainerError: 77 where rights are missing, 66 elsewhere.

    `name` is what people call the source, a pvc:// address.
    """
    try:
        yield
    except PermissionError as error:
        raise TrainerError(
            ExitCode.NOT_PERMITTED,
            f"{name}: no permission to read {error.filename or 'it'}; make it readable for "
            "everybody (chmod -R a+rX), or let the pod's group own the volume "
            "(template.spec.securityContext.fsGroup)",
        ) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise TrainerError(
            ExitCode.INPUT_MISSING,
            f"{name}: cannot be read{where}: {error.strerror or error}; check the volume, or copy "
            "the files again",
        ) from error

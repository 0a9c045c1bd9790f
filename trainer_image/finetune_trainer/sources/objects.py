"""`s3://` and `gs://`: objects of a bucket, through obstore (docs/design/adr/0013).

Endpoint, region and credentials come from the environment, under the names that the vendors' own
tools use: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ..., GOOGLE_SERVICE_ACCOUNT_KEY, ...
"""

import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, S3Store

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_api.uri import ObjectPath
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.files import value_digest
from finetune_trainer.sources.download import InterruptedTransferError, with_retries
from finetune_trainer.sources.listing import RemoteFile, input_missing

_RANGE = 16 << 20  # bytes a request
_NO_ETAG = "modified "  # prefix of the tag if the store has no ETags
_AT_ONCE = 4  # requests of one file
_NAMES_OF_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL")
# obstore's defaults are 30 s for a whole request, 10 retries within 3 minutes.
_TIMEOUT = timedelta(minutes=3)
_RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=30)}
# Without given credentials, obstore asks the cloud's metadata service for those of the machine.
_METADATA_SERVICE = re.compile(r"/latest/(api/token|meta-data)|169\.254\.|metadata\.google", re.I)
_STATUS = re.compile(r"status code: (\d{3})")
_BUSY = (408, 425, 429)
# Codes of refused credentials that come with another status than 401 and 403.
_DENIED = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "UserNotFound")
_SECRETS = {
    "s3": "credentialsSecretRef: a Secret with the keys AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY",
    "gs": "credentialsSecretRef: a Secret with the key GOOGLE_SERVICE_ACCOUNT_KEY",
}


class ObjectFolder:
    """The objects at or below a prefix, as they were when they were listed."""

    def __init__(self, where: ObjectPath, prefix: str) -> None:
        """Use the objects of a bucket below `prefix`, to which their names are relative.

        An empty prefix means the complete bucket.
        """
        self._where, self.prefix = where, prefix
        self._store = _store(where)
        self._files: list[RemoteFile] | None = None

    @property
    def address(self) -> str:
        """The address, for messages."""
        return str(self._where)

    def files(self) -> list[RemoteFile]:
        """Return the objects below the prefix, sorted by name; a second call returns the same."""
        if self._files is None:
            found = with_retries(self.address, self._list)
            self._files = sorted(found, key=lambda file: file.name)
        return self._files

    def find(self, name: str) -> RemoteFile | None:
        """Return the object of exactly this name, or None."""

        def request() -> RemoteFile | None:
            with self._translate_errors(name):
                try:
                    entry = obstore.head(self._store, self._key(name))
                except FileNotFoundError:
                    return None  # also if the bucket does not exist; listing it shows that
            return _file(entry, name)

        return with_retries(self.address, request)

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """Yield the contents from `offset` on; several ranges are requested at once.

        TrainerError 78 (retryable) if the object is no longer the one that was listed.
        """
        starts = iter(range(offset, file.size, _RANGE))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            pending: deque[Future[bytes]] = deque()

            def submit() -> None:
                start = next(starts, None)
                if start is not None:
                    pending.append(pool.submit(self._range, file, start))

            try:
                for _ in range(_AT_ONCE):
                    submit()
                while pending:
                    yield pending.popleft().result()
                    submit()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _list(self) -> list[RemoteFile]:
        with self._translate_errors(self._where.key):
            listed = [
                entry
                for page in obstore.list(self._store, prefix=self.prefix or None)
                for entry in page
            ]
        start = len(self.prefix) + 1 if self.prefix else 0
        return [_file(entry, entry["path"][start:]) for entry in listed]

    def _range(self, file: RemoteFile, start: int) -> bytes:
        end = min(file.size, start + _RANGE)
        options: Any = {"range": (start, end)}
        if not file.tag.startswith(_NO_ETAG):
            options["if_match"] = file.tag
        with self._translate_errors(file.name):
            return bytes(obstore.get(self._store, self._key(file.name), options=options).bytes())

    @contextmanager
    def _translate_errors(self, name: str) -> Iterator[None]:
        """Raise the errors of obstore as TrainerError, with a remedy.

        Its texts are searched for codes but not passed on, because they quote the store's answers.
        """
        where = f"{self._where.scheme}://{self._where.bucket}: {name}"
        try:
            yield
        except FileNotFoundError as error:
            raise input_missing(f"{where}: no such object", "check the key") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._not_permitted(_code(str(error))) from error
        except PreconditionError as error:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{where}: was replaced while it was downloaded; the next try downloads the new "
                "object",
                reason=reasons.INPUT_CHANGED,
            ) from error
        except (BaseError, OSError) as error:
            raise self._error_from_text(str(error)) from error

    def _error_from_text(self, text: str) -> Exception:
        """Return the error for a text of obstore, which has types for few of the possible errors.

        The text contains the status and the store's code.
        """
        found, code = _STATUS.search(text), _code(text)
        status = int(found[1]) if found else 0
        if _METADATA_SERVICE.search(text):
            return self._not_permitted("no credentials were given, and the node has none")
        if "NoSuchBucket" in code:
            return input_missing(
                f"{self.address}: no such bucket", "check the name and the endpoint"
            )
        if status in (401, 403) or any(denied in code for denied in _DENIED):
            return self._not_permitted(code)
        if (300 <= status < 500 and status not in _BUSY) or "redirect" in text:
            return TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{self.address}: the store refuses the request ({code}); check the name of the "
                "bucket, AWS_REGION and AWS_ENDPOINT_URL",
            )
        return InterruptedTransferError(code)

    def _not_permitted(self, problem: str) -> TrainerError:
        return TrainerError(
            ExitCode.NOT_PERMITTED,
            f"{self.address}: not permitted ({problem}); give credentials that may list and read "
            f"it ({_SECRETS[self._where.scheme]})",
        )


def _file(entry: Any, name: str) -> RemoteFile:
    tag = entry["e_tag"] or _NO_ETAG + entry["last_modified"].isoformat()
    return RemoteFile(name=name, size=entry["size"], tag=tag)


def _code(text: str) -> str:
    """Return the store's code, the status or a broken connection, without quoted contents."""
    if code := re.search(r"<Code>(\w+)</Code>", text):
        return code[1]
    if status := _STATUS.search(text):
        return f"status {status[1]}"
    cause = text.split("\n", 1)[0].rsplit(" - ", 1)[-1]
    return cause[:200] if "<" not in cause else "an unexpected answer"


def revision_of(files: list[RemoteFile]) -> str:
    """Return the revision of a listing: a sha256 over names, sizes and ETags."""
    return value_digest([[file.name, file.size, file.tag] for file in files])


def _store(where: ObjectPath) -> S3Store | GCSStore:
    """Return the client of a bucket; TrainerError 64 if obstore rejects the environment."""
    endpoints = [os.environ.get(name, "") for name in _NAMES_OF_ENDPOINTS]
    client: Any = {
        # Only if the environment names such an endpoint: never as a fallback.
        "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints),
        "timeout": _TIMEOUT,
    }
    kind = S3Store if where.scheme == "s3" else GCSStore
    try:
        return kind(where.bucket, client_options=client, retry_config=_RETRIES)
    except (BaseError, ValueError, OSError) as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{where}: the settings in the environment cannot be used "
            f"({type(error).__name__.removesuffix('Error')}); check the keys of the Secret "
            f"({_SECRETS[where.scheme]})",
        ) from error

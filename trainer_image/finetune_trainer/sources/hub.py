"""`hf://`: repositories of the Hugging Face Hub, models and data sets, at one commit.

huggingface_hub resolves and lists. The transfer is a plain request with a range, because the
functions of huggingface_hub begin a file again after a kill. HF_TOKEN, HF_ENDPOINT, HF_HOME,
HF_HUB_CACHE and HF_HUB_OFFLINE have the meaning that huggingface_hub gives them: files in its cache
are copied from there.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx2  # used by huggingface_hub, which lets its errors through
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported late

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_api.uri import HubPath
from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.sources.download import InterruptedTransferError, unreachable, with_retries
from finetune_trainer.sources.listing import RemoteFile, input_missing

Kind = Literal["model", "dataset"]
_log = logging.getLogger(__name__)
# httpx2 logs every request, with addresses that a CDN has signed.
logging.getLogger("httpx2").setLevel(logging.WARNING)
_COMMIT = re.compile("[0-9a-f]{40}")
_READ_TIMEOUT = 10.0  # s without a byte; the next request continues where this one stopped
_CHUNK = 1 << 20  # bytes, from a disk
# Statuses after which a retry may succeed.
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SECRET = "credentialsSecretRef: a Secret with the key HF_TOKEN"


class HubFolder:
    """A repository, or a folder in it, at a commit."""

    def __init__(
        self, address: HubPath, kind: Kind, commit: str, *, reachable: bool = True
    ) -> None:
        """Use a commit of a repository; `reachable` is False if the Hub did not answer before."""
        self._where, self._kind, self.commit = address, kind, commit
        self._reachable = reachable
        self._prefix = f"{address.path}/" if address.path else ""

    @classmethod
    def resolve(cls, address: HubPath, kind: Kind, revision: str | None) -> "HubFolder":
        """Return the repository at the commit that a revision is now.

        TrainerError: 66 not found, 77 not permitted, 78 (retryable) the Hub cannot be reached.
        """
        wanted = revision or "main"
        if _COMMIT.fullmatch(wanted):
            return cls(address, kind, wanted)
        try:
            return cls(address, kind, _commit(address, kind, wanted))
        except TrainerError as error:
            # Without the Hub, the cache of huggingface_hub may know the commit.
            cached = _cache_of(address, kind) / "refs" / wanted
            if not (_out_of_reach(error) and cached.is_file()):
                raise
            commit = cached.read_text().strip()
            _log.warning("%s: %s is %s in the cache of huggingface_hub", address, wanted, commit)
            return cls(address, kind, commit, reachable=False)

    @property
    def address(self) -> str:
        """The address, for messages."""
        return str(self._where)

    def files(self) -> list[RemoteFile]:
        """Return the files below the folder, sorted by name."""
        try:
            return sorted(self._listed(), key=lambda file: file.name)
        except TrainerError as error:
            cached = self._cached() if _out_of_reach(error) else []
            if not cached:
                raise
            _log.warning("%s: using the cache of huggingface_hub", self.address)
            return cached

    def _listed(self) -> list[RemoteFile]:
        """List the files once: huggingface_hub itself retries for half a minute."""
        try:
            if not self._reachable:
                raise InterruptedTransferError("it did not answer a moment ago")
            with translate_errors(self.address):
                entries = HfApi().list_repo_tree(
                    self._where.repository,
                    repo_type=self._kind,
                    revision=self.commit,
                    recursive=True,
                )
                return [
                    self._file(entry)
                    for entry in entries
                    if isinstance(entry, RepoFile) and entry.path.startswith(self._prefix)
                ]
        except InterruptedTransferError as error:
            raise unreachable(self.address, error) from error

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """Yield the contents from `offset` on: from the cache of huggingface_hub, else the Hub."""
        path = self._prefix + file.name
        local = try_to_load_from_cache(
            self._where.repository, path, revision=self.commit, repo_type=self._kind
        )
        return (
            _from_disk(Path(local), offset) if isinstance(local, str) else self._get(path, offset)
        )

    def _get(self, path: str, offset: int) -> Iterator[bytes]:
        url = hf_hub_url(self._where.repository, path, repo_type=self._kind, revision=self.commit)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = get_session().stream("GET", url, headers=headers, timeout=_READ_TIMEOUT)
        with translate_errors(self.address, path), request as response:
            hf_raise_for_status(response)
            # A server without support for ranges sends the complete file.
            skip = 0 if response.status_code == 206 else offset
            for chunk in response.iter_bytes():
                if len(chunk) > skip:
                    yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def _file(self, entry: RepoFile) -> RemoteFile:
        return RemoteFile(
            name=entry.path.removeprefix(self._prefix),
            size=entry.size,
            tag=entry.blob_id,
            sha256=entry.lfs.sha256 if entry.lfs else None,
        )

    def _cached(self) -> list[RemoteFile]:
        """Return the files of this commit in the cache of huggingface_hub, which may lack some."""
        snapshot = _cache_of(self._where, self._kind) / "snapshots" / self.commit
        root = snapshot / self._prefix
        files = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
        return sorted(
            (
                RemoteFile(str(path.relative_to(root)), path.stat().st_size, self.commit)
                for path in files
            ),
            key=lambda file: file.name,
        )


def _commit(address: HubPath, kind: Kind, revision: str) -> str:
    """Return the commit of a branch or a tag."""

    def request() -> str:
        with translate_errors(f"{address} (revision {revision})"):
            info = HfApi().repo_info(
                address.repository, repo_type=kind, revision=revision, timeout=_READ_TIMEOUT
            )
        if info.sha is None:
            raise InterruptedTransferError("the answer names no commit")
        return info.sha

    return with_retries(f"{address} (revision {revision})", request)


def _out_of_reach(error: TrainerError) -> bool:
    """Return whether the Hub did not answer or may not be asked. A refusal is an answer."""
    return error.code == ExitCode.ENVIRONMENT_UNUSABLE or constants.HF_HUB_OFFLINE


def _cache_of(address: HubPath, kind: Kind) -> Path:
    """Return the folder of a repository in the cache of huggingface_hub (a documented layout)."""
    return Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *address.repository.split("/")])


def _from_disk(path: Path, offset: int) -> Iterator[bytes]:
    with reading(str(path)), path.open("rb") as source:
        source.seek(offset)
        while chunk := source.read(_CHUNK):
            yield chunk


def check_access(address: HubPath, kind: Kind) -> None:
    """Raise the error of huggingface_hub if the contents may not be read."""
    HfApi().auth_check(address.repository, repo_type=kind)


@contextmanager
def translate_errors(address: str, file: str = "") -> Iterator[None]:
    """Raise the errors of huggingface_hub as TrainerError, with a remedy.

    `file` is the requested file, if it was one. Texts of the Hub are not passed on, because they
    may quote secrets.
    """
    try:
        yield
    except GatedRepoError as error:
        raise _not_permitted(
            f"{address}: gated; ask for access on its page on the Hub, and give the token of an "
            f"account that has it ({_SECRET})"
        ) from error
    except DisabledRepoError as error:
        raise _not_permitted(f"{address}: disabled by the Hub; choose another one") from error
    except RevisionNotFoundError as error:
        raise input_missing(
            f"{address}: no such revision", "name a branch, a tag or a commit that exists"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise input_missing(
            f"{address}: no file {file} in the repository", "check the path"
        ) from error
    except RepositoryNotFoundError as error:
        raise _no_repository(address, error.response.status_code) from error
    except HfHubHTTPError as error:
        raise _error_from_status(address, error.response.status_code) from error
    except OfflineModeIsEnabled as error:
        raise input_missing(
            f"{address}: not in the cache of huggingface_hub ({constants.HF_HUB_CACHE}), and "
            "HF_HUB_OFFLINE forbids requests to the Hub",
            "fill the cache, or remove HF_HUB_OFFLINE from workers.template",
        ) from error
    except (httpx2.TransportError, httpx2.TooManyRedirects, httpx2.StreamError) as error:
        raise InterruptedTransferError(str(error) or type(error).__name__) from error


def _no_repository(address: str, status: int) -> Exception:
    """Return the error of a repository that does not exist or that the token may not see.

    To a client without access, the Hub answers both in the same way.
    """
    if status == 401 and get_token() is None:
        return _not_permitted(
            f"{address}: no such repository, or a private one; check the name, or give a token "
            f"({_SECRET})"
        )
    if status == 401:
        return _error_from_status(address, status)
    return input_missing(
        f"{address}: no such repository",
        "check the name; a private one needs the token of an account that may read it",
    )


def _error_from_status(address: str, status: int) -> Exception:
    if status in (401, 403):
        problem = "the token is not valid" if status == 401 else "not permitted (403)"
        if get_token() is None:
            problem = "no token was given"
        return _not_permitted(f"{address}: {problem}; give one that may read it ({_SECRET})")
    if status == 404:
        return input_missing(
            f"{address}: not found", "check the address, and HF_ENDPOINT if it is set"
        )
    if status in _BUSY:
        return InterruptedTransferError(f"the Hub answered {status}")
    return TrainerError(
        ExitCode.ENVIRONMENT_UNUSABLE,
        f"{address}: the Hub answered {status}; check HF_ENDPOINT if it is set",
        reason=reasons.NETWORK_TROUBLE,
    )


def _not_permitted(message: str) -> TrainerError:
    return TrainerError(ExitCode.NOT_PERMITTED, message)

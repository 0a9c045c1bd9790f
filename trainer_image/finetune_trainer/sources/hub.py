"""`hf://`: repositories of the Hugging Face Hub, models and data sets, at one commit.

huggingface_hub resolves and lists; the transfer is a plain request with a range, for its own
functions begin a file again after a kill. HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and
HF_HUB_OFFLINE mean what they mean to huggingface_hub: what its cache holds is copied from there.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx2  # what huggingface_hub itself is made with; its errors are part of the interface
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

from finetune_api.exit_codes import ExitCode
from finetune_api.uri import HubPath
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.input_errors import reading
from finetune_trainer.sources.listing import RemoteFile, missing
from finetune_trainer.sources.network import InterruptedTransferError, patiently, unreachable

Kind = Literal["model", "dataset"]
_log = logging.getLogger(__name__)
# One line a request, with addresses that a CDN has signed.
logging.getLogger("httpx2").setLevel(logging.WARNING)
_COMMIT = re.compile("[0-9a-f]{40}")
_PATIENCE = 10.0  # s without a byte; the next request goes on where this one stood still
_CHUNK = 1 << 20  # bytes, from a disk
# The Hub answers these for what may be over in a moment.
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_SECRET = "credentialsSecretRef: a Secret with the key HF_TOKEN"


class HubFolder:
    """A repository, or a folder in it, at a commit."""

    def __init__(self, address: HubPath, kind: Kind, commit: str, *, there: bool = True) -> None:
        """`there`: whether the Hub can be reached, as far as is known."""
        self._where, self._kind, self.commit, self._there = address, kind, commit, there
        self._prefix = f"{address.path}/" if address.path else ""

    @classmethod
    def resolve(cls, address: HubPath, kind: Kind, revision: str | None) -> "HubFolder":
        """At the commit that a revision is now; TrainerError says what is wrong with it."""
        wanted = revision or "main"
        if _COMMIT.fullmatch(wanted):
            return cls(address, kind, wanted)
        try:
            return cls(address, kind, _commit(address, kind, wanted))
        except TrainerError as error:
            # A filled cache answers where the Hub is out of reach.
            cached = _cache_of(address, kind) / "refs" / wanted
            if not (_out_of_reach(error) and cached.is_file()):
                raise
            commit = cached.read_text().strip()
            _log.warning("%s: %s is %s in the cache of huggingface_hub", address, wanted, commit)
            return cls(address, kind, commit, there=False)

    @property
    def address(self) -> str:
        """What people call it."""
        return str(self._where)

    def files(self) -> list[RemoteFile]:
        """Files below the folder, sorted by name."""
        try:
            return sorted(self._listed(), key=lambda file: file.name)
        except TrainerError as error:
            cached = self._cached() if _out_of_reach(error) else []
            if not cached:
                raise
            _log.warning("%s: using the cache of huggingface_hub", self.address)
            return cached

    def _listed(self) -> list[RemoteFile]:
        """Asked once: huggingface_hub itself tries it again for half a minute."""
        try:
            if not self._there:
                raise InterruptedTransferError("it was not a moment ago")
            with in_words(self.address):
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
        """Contents from `offset` on: from the cache of huggingface_hub, else from the Hub."""
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
        request = get_session().stream("GET", url, headers=headers, timeout=_PATIENCE)
        with in_words(self.address, path), request as response:
            hf_raise_for_status(response)
            # A server that knows no ranges sends all of it.
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
        """What a filled cache holds of this commit; it may be a part."""
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
    """Of a branch or a tag, as the Hub says."""

    def look() -> str:
        with in_words(f"{address} (revision {revision})"):
            info = HfApi().repo_info(
                address.repository, repo_type=kind, revision=revision, timeout=_PATIENCE
            )
        if info.sha is None:
            raise InterruptedTransferError("the answer names no commit")
        return info.sha

    return patiently(f"{address} (revision {revision})", look)


def _out_of_reach(error: TrainerError) -> bool:
    """Whether the Hub did not answer or may not be asked: a refusal is no reason to guess."""
    return error.code == ExitCode.ENVIRONMENT_UNUSABLE or constants.HF_HUB_OFFLINE


def _cache_of(address: HubPath, kind: Kind) -> Path:
    """A repository in the cache of huggingface_hub, whose layout is documented."""
    return Path(constants.HF_HUB_CACHE) / "--".join([f"{kind}s", *address.repository.split("/")])


def _from_disk(path: Path, offset: int) -> Iterator[bytes]:
    with reading(str(path)), path.open("rb") as source:
        source.seek(offset)
        while chunk := source.read(_CHUNK):
            yield chunk


def check_access(address: HubPath, kind: Kind) -> None:
    """Raises what huggingface_hub raises when the contents may not be read."""
    HfApi().auth_check(address.repository, repo_type=kind)


@contextmanager
def in_words(address: str, file: str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises into what a person can act on.

    `file`: which one was asked for, where it was one. Texts of the other side are
    not passed on: what they quote is not ours to know.
    """
    try:
        yield
    except GatedRepoError as error:
        raise _not_permitted(
            f"{address}: gated; ask for access on its page on the Hub, and give the token of "
            f"somebody who has it ({_SECRET})"
        ) from error
    except DisabledRepoError as error:
        raise _not_permitted(f"{address}: disabled by the Hub; choose another one") from error
    except RevisionNotFoundError as error:
        raise missing(
            f"{address}: no such revision", "name a branch, a tag or a commit that exists"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise missing(f"{address}: no file {file} in the repository", "check the path") from error
    except RepositoryNotFoundError as error:
        raise _no_repository(address, error.response.status_code) from error
    except HfHubHTTPError as error:
        raise _of_status(address, error.response.status_code) from error
    except OfflineModeIsEnabled as error:
        raise missing(
            f"{address}: not in the cache of huggingface_hub ({constants.HF_HUB_CACHE}), and "
            "HF_HUB_OFFLINE forbids to ask the Hub",
            "fill the cache, or take HF_HUB_OFFLINE out of workers.template",
        ) from error
    except (httpx2.TransportError, httpx2.TooManyRedirects, httpx2.StreamError) as error:
        raise InterruptedTransferError(str(error) or type(error).__name__) from error


def _no_repository(address: str, status: int) -> Exception:
    """The Hub does not tell whether a repository is private or absent to those who may not know."""
    if status == 401 and get_token() is None:
        return _not_permitted(
            f"{address}: no such repository, or a private one; check the name, or give a token "
            f"({_SECRET})"
        )
    if status == 401:
        return _of_status(address, status)
    return missing(
        f"{address}: no such repository",
        "check the name; a private one needs the token of somebody who may read it",
    )


def _of_status(address: str, status: int) -> Exception:
    if status in (401, 403):
        problem = "the token is not valid" if status == 401 else "not permitted (403)"
        if get_token() is None:
            problem = "no token was given"
        return _not_permitted(f"{address}: {problem}; give one that may read it ({_SECRET})")
    if status == 404:
        return missing(f"{address}: not found", "check the address, and HF_ENDPOINT if it is set")
    if status in _BUSY:
        return InterruptedTransferError(f"the Hub answered {status}")
    return TrainerError(
        ExitCode.ENVIRONMENT_UNUSABLE,
        f"{address}: the Hub answered {status}; check HF_ENDPOINT if it is set",
        reason="NetworkTrouble",
    )


def _not_permitted(message: str) -> TrainerError:
    return TrainerError(ExitCode.NOT_PERMITTED, message)

"""Addresses of files: `pvc://` for everything, and for inputs also `hf://`, `s3://` and `gs://`."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

SCHEME = "pvc://"
FORMS = "pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], s3://BUCKET/KEY or gs://BUCKET/KEY"


@dataclass(frozen=True)
class ClaimPath:
    """A path on a PersistentVolumeClaim of the job's namespace."""

    claim: str
    path: str  # relative and normalised

    @classmethod
    def parse(cls, uri: str) -> "ClaimPath":
        """Parse an address. Raises ValueError for addresses that the CRD refuses as well."""
        if not uri.startswith(SCHEME):
            raise ValueError(f"{uri!r}: only pvc://CLAIM/PATH is supported here")
        claim, _, path = uri.removeprefix(SCHEME).partition("/")
        parts = _parts(path)
        if not claim or not parts or ".." in parts:
            raise ValueError(f"{uri!r}: must be pvc://CLAIM/PATH without '..'")
        return cls(claim, "/".join(parts))

    def under(self, mounts: dict[str, str]) -> PurePosixPath:
        """Return the path inside a pod that mounts each claim at `mounts[claim]`."""
        return PurePosixPath(mounts[self.claim]) / self.path

    def __str__(self) -> str:
        return f"{SCHEME}{self.claim}/{self.path}"


def is_inside(path: str, folder: str) -> bool:
    """Return whether a normalised path is a folder or in it."""
    return path == folder or path.startswith(f"{folder}/")


@dataclass(frozen=True)
class HubPath:
    """A repository of the Hugging Face Hub, or a path in it."""

    repository: str  # ORG/NAME
    path: str  # relative and normalised; empty for the complete repository

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class ObjectPath:
    """An object, or a prefix of objects, in a bucket."""

    scheme: Literal["s3", "gs"]
    bucket: str
    key: str  # normalised and not empty

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


def is_claim(uri: str) -> bool:
    """Return whether an address is on a claim. All others are downloaded first."""
    return uri.startswith(SCHEME)


def parse(uri: str) -> ClaimPath | HubPath | ObjectPath:
    """Parse the address of an input. Raises ValueError with the allowed forms."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "pvc":
        return ClaimPath.parse(uri)
    parts = _parts(rest)
    if ".." not in parts and not rest.startswith("/"):
        if scheme == "hf" and len(parts) >= 2 and parts[0] != "datasets":
            return HubPath("/".join(parts[:2]), "/".join(parts[2:]))
        if scheme == "s3" and len(parts) >= 2:
            return ObjectPath("s3", parts[0], "/".join(parts[1:]))
        if scheme == "gs" and len(parts) >= 2:
            return ObjectPath("gs", parts[0], "/".join(parts[1:]))
    raise ValueError(f"{uri!r}: must be {FORMS}, without '..'")


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]

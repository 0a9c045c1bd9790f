"""`pvc://CLAIM/PATH`, the one kind of address this version reads and writes."""

from dataclasses import dataclass
from pathlib import PurePosixPath

SCHEME = "pvc://"


@dataclass(frozen=True)
class ClaimPath:
    """A path on a PersistentVolumeClaim of the job's namespace."""

    claim: str
    path: str  # relative, normalised

    @classmethod
    def parse(cls, uri: str) -> "ClaimPath":
        """Parse an address; ValueError names what is wrong (the CRD refuses the same ones)."""
        if not uri.startswith(SCHEME):
            raise ValueError(f"{uri!r}: only pvc://CLAIM/PATH is supported")
        claim, _, path = uri.removeprefix(SCHEME).partition("/")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not claim or not parts or ".." in parts:
            raise ValueError(f"{uri!r}: must be pvc://CLAIM/PATH without '..'")
        return cls(claim, "/".join(parts))

    def under(self, mounts: dict[str, str]) -> PurePosixPath:
        """Where the address lies inside a pod that mounts claims at `mounts[claim]`."""
        return PurePosixPath(mounts[self.claim]) / self.path

    def child(self, name: str) -> "ClaimPath":
        """A path below this one."""
        return ClaimPath(self.claim, f"{self.path}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.claim}/{self.path}"

"""The reference of the trainer image, which is frozen as the digest that ran.

A tag can be moved while a job runs, so that later attempts would run another program. The container
runtime reports the digest, but not always one that can be pulled: images that were imported into a
node have none, and the same content may be known under another repository. Then the tag stays.

`status.resolved.image` is REPOSITORY:TAG@DIGEST, and pods get REPOSITORY@DIGEST.
"""

import re

_MAX_CHARACTERS = 512  # of status.resolved.image
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB = "docker.io"


def frozen(image: str, image_id: str) -> str:
    """Return a reference with the digest in the image id of a container that ran it.

    The reference is returned unchanged if the digest does not belong to its repository.
    """
    repository, _, digest = image_id.rpartition("://")[2].partition("@")
    reference = f"{image}@{digest}"
    if "@" in image or not _DIGEST.fullmatch(digest) or len(reference) > _MAX_CHARACTERS:
        return image
    same = _full_name(_without_tag(repository)) == _full_name(_without_tag(image))
    return reference if same else image


def pullable(reference: str) -> str:
    """Return the reference for a pod: some runtimes refuse one with a tag and a digest."""
    name, at, digest = reference.partition("@")
    return f"{_without_tag(name)}@{digest}" if at else reference


def following(asked: str | None, before: str) -> str:
    """Return the reference for the next attempt, unless the spec names another image now."""
    if asked is None or asked in (before, before.partition("@")[0]):
        return before
    return asked


def _without_tag(name: str) -> str:
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def _full_name(repository: str) -> str:
    """Return a repository with the registry and the folder that Docker Hub's names leave out."""
    first, slash, rest = repository.partition("/")
    if not slash:
        return f"{_HUB}/library/{repository}"
    if "." in first or ":" in first or first == "localhost":
        return f"{_HUB}/library/{rest}" if first == _HUB and "/" not in rest else repository
    return f"{_HUB}/{repository}"

"""/etc/hosts of a pod: its own name, and those of the pods that share its subdomain ."""

import os
from pathlib import Path
from typing import Any

Object = dict[str, Any]


def render(pod: Object, pods: list[Object], domain: str = "cluster.local") -> str:
    """Text of the file. Names as a headless Service publishes them, not-ready pods included."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    namespace, subdomain = pod["metadata"]["namespace"], pod["spec"].get("subdomain")
    seen = set()
    for other in [pod, *pods]:
        ip = other.get("status", {}).get("podIP")
        uid = other["metadata"]["uid"]
        if not ip or uid in seen or other["metadata"]["namespace"] != namespace:
            continue
        mine = uid == pod["metadata"]["uid"]
        shares = bool(subdomain) and other["spec"].get("subdomain") == subdomain
        if not mine and not shares:
            continue
        seen.add(uid)
        host = other["spec"].get("hostname") or other["metadata"]["name"]
        names = [
            f"{host}.{subdomain}.{namespace}.svc.{domain}",
            f"{host}.{subdomain}.{namespace}.svc",
        ]
        names += [f"{host}.{subdomain}"]
        lines.append(" ".join([ip, *(names if subdomain else []), *([host] if mine else [])]))
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write in place: what is bind-mounted keeps its inode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)

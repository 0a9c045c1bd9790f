"""Writes the files of a new cluster: settings, certificates, kubeconfigs, command lines."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from finetune_local import layout
from finetune_local.cache import TREE
from finetune_local.layout import Identities, Identity, Settings

IMAGE = "finetune-trainer:local"
# The second one is that of examples/helper.yaml. Its programs are those of this machine.
IMAGES = (IMAGE, "busybox:1.37")
_IMAGE_USER = 65532  # "nonroot", as in the real image


def write_files(
    folder: Path, settings: Settings, binary: Path, api_server_flags: Sequence[str]
) -> None:
    """Write everything that the supervisor needs to start the cluster.

    cluster.json comes first, because it marks the folder as one that a cluster may delete.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.save(folder / "cluster.json")
    for part in ("logs", "etcd"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    identities = _identities(folder, settings)
    components = layout.control_plane(folder, binary, settings, identities, api_server_flags)
    components += [layout.node(folder, settings, name) for name in settings.node_names]
    entries = json.dumps([asdict(component) for component in components])
    (folder / "components.json").write_text(entries)
    (folder / "images.json").write_text(json.dumps(dict.fromkeys(IMAGES, _image(settings))))


def _image(settings: Settings) -> dict[str, object]:
    """Return the environment and the user of an image, as `node.images.Image` has them."""
    path = os.pathsep.join([str(TREE / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
    devices = settings.devices * settings.nodes or 1
    # Each rank gets its device's share of the cores. Ranks that all use every core spend their time
    # waiting for each other: two thirds of it, measured with two ranks on two cores.
    threads = max(1, (os.cpu_count() or 1) // devices)
    env = {"PATH": path, "HOME": "/tmp", "OMP_NUM_THREADS": str(threads)}
    return {"env": env, "user": _IMAGE_USER}


def write_kubeconfig(folder: Path, file: str, settings: Settings, user: dict[str, str]) -> Path:
    """Write a kubeconfig into the cluster's folder, readable only by its owner; return its path."""
    path = folder / f"{file}.conf"
    text = layout.kubeconfig(settings.server, folder / "pki" / "ca.crt", user)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    return path


def _identities(folder: Path, settings: Settings) -> Identities:
    # Imported late, so that a cluster can be taken down without the packages of `make setup`.
    from finetune_local.pki import Authority

    authority = Authority(folder / "pki")

    def client(file: str, identity: Identity) -> None:
        pair = {
            "client-certificate": str(identity.certificate),
            "client-key": str(identity.key),
        }
        write_kubeconfig(folder, file, settings, pair)

    identities = Identities(
        ca=authority.certificate,
        api_server=authority.issue(
            "apiserver",
            "kube-apiserver",
            names=("127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1"),
        ),
        kubelet_client=authority.issue(
            "kubelet-client", layout.KUBELET_CLIENT, ("system:masters",)
        ),
        service_accounts=authority.signing_key("service-accounts"),
    )
    users = {
        "admin": ("finetune-local:admin", ("system:masters",)),
        "controller-manager": ("system:kube-controller-manager", ()),
        "scheduler": ("system:kube-scheduler", ()),
        "provisioner": ("finetune-local:provisioner", ()),
        "names": ("finetune-local:names", ()),
    }
    for file, (user, groups) in users.items():
        client(file, authority.issue(file, user, groups))
    for name in settings.node_names:
        names = ("127.0.0.1", name)
        client(name, authority.issue(name, f"system:node:{name}", ("system:nodes",), names))
    return identities

"""Settings of a cluster and the command lines of its components (pure functions)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

KUBELET_CLIENT = "kube-apiserver-kubelet-client"  # the user that the API server is to a node
SOCKETS = ("etcd.sock:0", "etcd-peer.sock:0")


@dataclass(frozen=True)
class Settings:
    """What a cluster was brought up with, stored as `cluster.json` in its folder."""

    name: str
    api_port: int
    pod_network: str
    devices: int
    nodes: int
    tree: str = ""  # the checkout that it was started from

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes, numbered from 1."""
        return [f"{self.name}-node-{number + 1}" for number in range(self.nodes)]

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote, also in another version: unknown fields are ignored."""
        known = {field.name for field in fields(cls)}
        found = json.loads(path.read_text())
        return cls(**{name: value for name, value in found.items() if name in known})


@dataclass(frozen=True)
class Component:
    """One process that the supervisor keeps running."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Identity:
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Identities:
    """The certificate authority, and the certificates of the components that need one."""

    ca: Path
    api_server: Identity
    kubelet_client: Identity
    service_accounts: Identity


def control_plane(
    folder: Path,
    binary: Path,
    settings: Settings,
    identities: Identities,
    api_server_flags: Sequence[str] = (),
) -> list[Component]:
    """Return etcd, the API server, the controller manager and the scheduler."""
    # etcd listens on sockets in a folder with mode 0700, so only the owner can connect. It requires
    # a port even for a socket.
    etcd, peer = (f"unix://{folder}/{name}" for name in SOCKETS)
    api_server, accounts = identities.api_server, identities.service_accounts
    manager, scheduler = folder / "controller-manager.conf", folder / "scheduler.conf"
    commands = {
        "etcd": [
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # `down` deletes the data, so it need not survive a crash
            "--log-level=warn",
        ],
        "kube-apiserver": [
            "--bind-address=127.0.0.1",
            # Without it the API server looks for the machine's own address, and does not start on
            # a machine without a default route.
            "--advertise-address=127.0.0.1",
            f"--secure-port={settings.api_port}",
            f"--etcd-servers={etcd}",
            f"--tls-cert-file={api_server.certificate}",
            f"--tls-private-key-file={api_server.key}",
            f"--client-ca-file={identities.ca}",
            f"--kubelet-certificate-authority={identities.ca}",
            f"--kubelet-client-certificate={identities.kubelet_client.certificate}",
            f"--kubelet-client-key={identities.kubelet_client.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",  # as on other clusters, where Pod Security forbids it
            "--endpoint-reconciler-type=none",  # EndpointSlices do not accept addresses in 127/8
            *api_server_flags,
        ],
        "kube-controller-manager": [
            f"--kubeconfig={manager}",
            f"--service-account-private-key-file={accounts.key}",
            f"--root-ca-file={identities.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            # With the default of 20 requests a second discovery in a new cluster takes 5 s.
            "--kube-api-qps=500",
            "--kube-api-burst=500",
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=20s",
            "--controllers=*,-endpoints-controller,-endpointslice-controller,"
            "-endpointslice-mirroring-controller",
        ],
        "kube-scheduler": [
            f"--kubeconfig={scheduler}",
            "--leader-elect=false",
            "--secure-port=0",
        ],
    }
    return [Component(name, [str(binary), name, *flags]) for name, flags in commands.items()]


def node(folder: Path, settings: Settings, name: str) -> Component:
    """Return the agent of one node."""
    number = settings.node_names.index(name)
    first, second, *_ = settings.pod_network.split(".")
    return Component(
        name,
        [
            *(sys.executable, "-m", "finetune_local.node"),
            *("--name", name, "--address", "127.0.0.1"),
            *("--kubeconfig", str(folder / f"{name}.conf")),
            *("--provisioner-kubeconfig", str(folder / "provisioner.conf")),
            *("--names-kubeconfig", str(folder / "names.conf")),
            *("--serving-cert", str(folder / "pki" / f"{name}.crt")),
            *("--serving-key", str(folder / "pki" / f"{name}.key")),
            *("--client-ca", str(folder / "pki" / "ca.crt")),
            *("--devices", str(settings.devices)),
            *("--state", str(folder / name)),
            *("--images", str(folder / "images.json")),
            *("--pod-network", f"{first}.{second}.{number}.0/24"),
        ],
    )


def kubeconfig(server: str, ca: Path, user: dict[str, str]) -> str:
    """Return a kubeconfig with one cluster, one user and one context, as JSON, which is YAML."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": server, "certificate-authority": str(ca)}}
            ],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
            "current-context": "local",
        },
        indent=1,
    )

"""Files and numbers of one cluster, and the command lines of its components (pure)."""

import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from finetune_local.pki import Identity

SOCKETS = ("etcd.sock:0", "etcd-peer.sock:0")


@dataclass(frozen=True)
class Settings:
    """What was chosen for a cluster when it came up; `cluster.json` in its folder."""

    name: str
    api_port: int
    pod_network: str
    devices: int
    nodes: int
    audit: bool = False  # the API server notes what service accounts ask of it

    @property
    def server(self) -> str:
        """Address of the API server."""
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def node_names(self) -> list[str]:
        """Node 1 to n."""
        return [f"{self.name}-node-{number + 1}" for number in range(self.nodes)]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote, also in another version: what is not known here is left out."""
        known = {field.name for field in fields(cls)}
        found = json.loads(path.read_text())
        return cls(**{name: value for name, value in found.items() if name in known})


@dataclass(frozen=True)
class Component:
    """One process that the supervisor keeps running."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Identities:
    """Who signs and who speaks."""

    ca: Path
    api_server: Identity
    kubelet_client: Identity
    service_accounts: Identity


def control_plane(
    folder: Path, binary: Path, settings: Settings, identities: Identities
) -> list[Component]:
    """etcd (on a socket that only the owner can reach), API server, controllers, scheduler."""
    # etcd wants a port even of a socket; the files lie in a folder with mode 0700.
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
            "--unsafe-no-fsync",  # a cluster that `down` deletes needs no durability
            "--log-level=warn",
        ],
        "kube-apiserver": [
            "--bind-address=127.0.0.1",
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
            "--allow-privileged",  # as everywhere: Pod Security is what forbids it
            "--endpoint-reconciler-type=none",  # EndpointSlices refuse addresses of 127/8
            *(_audit(folder) if settings.audit else []),
        ],
        "kube-controller-manager": [
            f"--kubeconfig={manager}",
            f"--service-account-private-key-file={accounts.key}",
            f"--root-ca-file={identities.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            # Its default of 20 a second makes a new cluster wait five seconds for discovery.
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


AUDIT_LOG = Path("logs") / "audit.log"  # in the cluster's folder, a JSON object a line
# Nothing of the bodies. The controllers' own accounts would be most of it.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}


def audit_policy(folder: Path) -> Path:
    """File that holds AUDIT_POLICY."""
    return folder / "audit-policy.json"


def _audit(folder: Path) -> list[str]:
    log = folder / AUDIT_LOG
    # Blocking: what was answered stands in the log.
    mode = "--audit-log-mode=blocking"
    return [f"--audit-policy-file={audit_policy(folder)}", f"--audit-log-path={log}", mode]


def node(folder: Path, settings: Settings, name: str) -> Component:
    """The agent of one node."""
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
    """A kubeconfig with one cluster, one user, one context (JSON is YAML)."""
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

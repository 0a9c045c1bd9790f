"""Files and command lines of the components of the test cluster."""

import json
from pathlib import Path

from finetune_local import layout
from finetune_local.pki import Authority, Identity
from tests.nodes import cgroups
from tests.nodes.machine import CONTROL_PLANE, HOST, NODES, node_address, pod_network
from tests.nodes.programs import CNI

SERVER = f"https://{CONTROL_PLANE}:6443"
REGISTRY = f"{HOST}:5000"
PAUSE = f"{REGISTRY}/pause:1"
_PODS = "10.98.0.0/16"
_SERVICES = "10.99.0.0/16"
_DNS = "10.99.0.10"
NODE_LOST_SECONDS = 16
"""Time after which a node that does not report is NotReady; 50 s by default."""

_CONTAINERD = """
version = 3
[plugins."io.containerd.cri.v1.images"]
registry.config_path = "{folder}/registries"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true # a container may lack CAP_SYS_RESOURCE
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni}"]
conf_dir = "{folder}/{node}-cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
_COREDNS = """
.:53 {{
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {folder}/coredns.conf local
        pods insecure
        ttl 2
    }}
}}
"""
# CoreDNS runs beside the API server, so that the loss of a node does not affect it.
OBJECTS = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {_DNS}
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{{addresses: ["{CONTROL_PLANE}"], conditions: {{ready: true}}}}]
ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: coredns}}
rules:
- {{apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: coredns}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}}]
"""


def write(folder: Path) -> None:
    """Write the certificates, kubeconfigs and configurations of all machines."""
    authority = Authority(folder / "pki")
    authority.signing_key("service-accounts")
    names = (CONTROL_PLANE, "10.99.0.1", "kubernetes.default.svc")
    authority.issue("apiserver", "kube-apiserver", names=names)
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",))
    users = {
        "admin": authority.issue("admin", "admin", ("system:masters",)),
        "controller-manager": authority.issue("manager", "system:kube-controller-manager"),
        "scheduler": authority.issue("scheduler", "system:kube-scheduler"),
        "kube-proxy": authority.issue("kube-proxy", "system:kube-proxy"),
        "coredns": authority.issue("coredns", "coredns"),
    }
    for number in range(1, NODES + 1):
        name, own = f"node{number}", (node_address(number), f"node{number}")
        users[name] = authority.issue(name, f"system:node:{name}", ("system:nodes",), own)
        _write_node(folder, number)
    for file, identity in users.items():
        (folder / f"{file}.conf").write_text(_kubeconfig(authority, identity))
    (folder / "Corefile").write_text(_COREDNS.format(folder=folder))
    (folder / "resolv.conf").write_text("")  # pods reach nothing outside of the cluster
    hosts = folder / "registries" / REGISTRY / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'server = "http://{REGISTRY}"\n')


def control_plane(folder: Path, disk: Path) -> dict[str, list[str]]:
    """Return the command of each daemon of the control plane, by its name."""
    pki = folder / "pki"
    return {
        "etcd": [
            *("controlplane", "etcd", "--log-level=warn", f"--data-dir={disk}/etcd"),
            "--unsafe-no-fsync",  # the data is deleted at the end
        ],
        "kube-apiserver": [
            *("controlplane", "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379"),
            f"--advertise-address={CONTROL_PLANE}",
            f"--service-cluster-ip-range={_SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
        ],
        "kube-controller-manager": [
            *("controlplane", "kube-controller-manager", "--leader-elect=false"),
            f"--kubeconfig={folder}/controller-manager.conf",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            f"--node-monitor-grace-period={NODE_LOST_SECONDS}s",
            f"--flex-volume-plugin-dir={disk}/volume-plugins",
        ],
        "kube-scheduler": [
            *("controlplane", "kube-scheduler", "--leader-elect=false"),
            f"--kubeconfig={folder}/scheduler.conf",
        ],
        "coredns": ["coredns", "-conf", f"{folder}/Corefile"],
    }


def node(folder: Path, number: int) -> dict[str, list[str]]:
    """Return the command of each daemon of a node, by its name."""
    name = f"node{number}"
    kubelet = [
        *("node", "kubelet", f"--config={folder}/{name}-kubelet.json"),
        *(f"--kubeconfig={folder}/{name}.conf", f"--hostname-override={name}"),
        f"--node-ip={node_address(number)}",
    ]
    return {
        "containerd": ["containerd", "--config", f"{folder}/{name}-containerd.toml"],
        "kubelet": kubelet,
        "kube-proxy": ["node", "kube-proxy", f"--config={folder}/{name}-kube-proxy.json"],
    }


def _kubeconfig(authority: Authority, identity: Identity) -> str:
    pair = {"client-certificate": str(identity.certificate), "client-key": str(identity.key)}
    return layout.kubeconfig(SERVER, authority.certificate, pair)


def _write_node(folder: Path, number: int) -> None:
    name = f"node{number}"
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": f"{folder}/pki/ca.crt"}},
        "tlsCertFile": f"{folder}/pki/{name}.crt",
        "tlsPrivateKeyFile": f"{folder}/pki/{name}.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroups.create(name),
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE
        "maxOpenFiles": 20000,
        "failSwapOn": False,
        "clusterDNS": [_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{folder}/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "serializeImagePulls": False,
        # Thresholds that the disk of the computer, which all nodes share, does not reach.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
    }
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{folder}/kube-proxy.conf"},
        "hostnameOverride": name,
        "mode": "nftables",
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": _PODS,
        # These limits can be written only in the first network namespace of a computer.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    network = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "subnet": pod_network(number),
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/run/cni-ipam",
                },
            }
        ],
    }
    (folder / f"{name}-cni").mkdir()
    files = {
        f"{name}-kubelet.json": json.dumps(kubelet, indent=1),
        f"{name}-kube-proxy.json": json.dumps(proxy, indent=1),
        f"{name}-cni/10-pods.conflist": json.dumps(network, indent=1),
        f"{name}-containerd.toml": _CONTAINERD.format(
            folder=folder, node=name, pause=PAUSE, cni=CNI
        ),
    }
    for file, text in files.items():
        (folder / file).write_text(text)

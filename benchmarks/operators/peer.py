"""Kubeflow's training-operator v1: built from its Go module, installed as it is shipped."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from benchmarks.operators.sandbox import CERTIFICATES, SERVICE_ADDRESS

from finetune_local.cache import cache_folder
from finetune_local.cluster import Cluster, ClusterError

VERSION = "v1.8.1"
NAMESPACE = "kubeflow"
ACCOUNT = "training-operator"
_MODULE = "github.com/kubeflow/training-operator"
_PROGRAM = "training-operator.v1"
_RUNTIME = "sigs.k8s.io/controller-runtime"
_SECRET = "training-operator-webhook-cert"
_WEBHOOK = "validator.training-operator.kubeflow.org"
_LIFTED = {"cfg.QPS = 20.0": "cfg.QPS = 2000.0", "cfg.Burst = 30": "cfg.Burst = 2000"}


class PeerError(Exception):
    """The training-operator cannot be built or started."""


def build(*, lifted: bool) -> Path:
    """Return the program, from the cache or built now (minutes).

    `lifted`: without its limit of 20 requests a second, which is compiled in; nothing else differs.
    """
    folder = cache_folder() / f"training-operator-{VERSION}{'-lifted' if lifted else ''}"
    program = folder / _PROGRAM
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise PeerError("no `go` on the PATH to build the training-operator; use --no-peer")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    what = "without its request limit" if lifted else "as released"
    print(
        f"training-operator {VERSION} {what}: building from Go modules (minutes, once)", flush=True
    )
    target = f"{_MODULE}/cmd/{_PROGRAM}" + ("" if lifted else f"@{VERSION}")
    done = subprocess.run(
        [go, "install", "-trimpath", target],
        env=_go_environment() | {"GOBIN": str(partial)},
        cwd=_lifted_source(go, partial / "source") if lifted else "/",
        check=False,
    )
    if done.returncode:
        raise PeerError(f"go install {target} failed; use --no-peer")
    shutil.rmtree(partial / "source", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return program


def _go_environment() -> dict[str, str]:
    return os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": ""}


def _module(go: str, name: str) -> Path:
    command = [go, "mod", "download", "-json", name]
    done = subprocess.run(
        command, env=_go_environment(), cwd="/", check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise PeerError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _lifted_source(go: str, folder: Path) -> Path:
    """Return its source, with a copy of controller-runtime in which the two limits are higher."""
    operator, runtime = folder / "operator", folder / "controller-runtime"
    _copy(_module(go, f"{_MODULE}@{VERSION}"), operator)
    requirements = (operator / "go.mod").read_text().split()
    version = requirements[requirements.index(_RUNTIME) + 1]
    _copy(_module(go, f"{_RUNTIME}@{version}"), runtime)
    source = runtime / "pkg" / "client" / "config" / "config.go"
    text = source.read_text()
    for old, new in _LIFTED.items():
        if text.count(old) != 1:
            raise PeerError(f"{source} does not contain {old!r} exactly once")
        text = text.replace(old, new)
    source.write_text(text)
    with (operator / "go.mod").open("a") as file:
        file.write(f"\nreplace {_RUNTIME} => {runtime}\n")
    return operator


def _copy(module: Path, target: Path) -> None:
    """Copy a module and make the folders writable, because the module cache is read-only."""
    shutil.copytree(module, target, copy_function=shutil.copyfile)
    for folder in (target, *(p for p in target.rglob("*") if p.is_dir())):
        folder.chmod(0o755)


def install(cluster: Cluster) -> Path:
    """Install the CRD, rights, webhook and Secret of the module; return its kubeconfig."""
    go = shutil.which("go")
    assert go is not None
    manifests = _module(go, f"{_MODULE}@{VERSION}") / "manifests" / "base"
    crd = manifests / "crds" / "kubeflow.org_pytorchjobs.yaml"
    cluster.kubectl("apply", "--server-side", "-f", str(crd))
    items = [*_rights(manifests / "rbac"), *_webhook(manifests)]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    if NAMESPACE not in cluster.kubectl("get", "namespaces"):
        cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    cluster.kubectl("wait", "--for=condition=Established", "crd/pytorchjobs.kubeflow.org")
    return cluster.user_kubeconfig(NAMESPACE, ACCOUNT)


def _rights(folder: Path) -> list[dict[str, Any]]:
    files = ("service-account.yaml", "role.yaml", "cluster-role-binding.yaml")
    account, role, binding = (yaml.safe_load((folder / file).read_text()) for file in files)
    account["metadata"]["namespace"] = NAMESPACE
    binding["subjects"][0]["namespace"] = NAMESPACE
    return [account, role, binding]


def _webhook(manifests: Path) -> list[dict[str, Any]]:
    """Return the webhook of PyTorchJobs, its Service, and the Secret of its certificate."""
    webhook = yaml.safe_load((manifests / "webhook" / "manifests.yaml").read_text())
    webhook["metadata"]["name"] = _WEBHOOK
    webhook["webhooks"] = [w for w in webhook["webhooks"] if "pytorchjob" in w["name"]]
    service = {"name": ACCOUNT, "namespace": NAMESPACE}
    webhook["webhooks"][0]["clientConfig"]["service"] |= service
    ports = [{"name": "webhook-server", "port": 443}]
    return [
        webhook,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": service,
            "spec": {"clusterIP": SERVICE_ADDRESS, "ports": ports},
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": service | {"name": _SECRET}},
    ]


def command(program: Path, *, lifted: bool) -> list[str]:
    """Return its command line: PyTorchJobs only, and 8 workers if the limits are lifted."""
    threads = ["--controller-threads", "8"] if lifted else []
    return [
        *(str(program), "--enable-scheme=pytorchjob", *threads),
        *("--webhook-server-port=443", "--metrics-bind-address=0", "--health-probe-bind-address=0"),
    ]


def mount_certificate(cluster: Cluster, seconds: float = 120) -> None:
    """Write the Secret to files as a kubelet does, once the operator has filled it."""
    folder = CERTIFICATES / "serving-certs"
    folder.mkdir(exist_ok=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = cluster.kubectl("get", "secret", _SECRET, "-n", NAMESPACE, "-o", "json")
        data = json.loads(text).get("data", {})
        if "tls.crt" in data:
            for name, value in data.items():
                (folder / name).write_bytes(base64.b64decode(value))
            return
        time.sleep(0.5)
    raise ClusterError(f"the training-operator created no certificate within {seconds:.0f} s")


def job(name: str, namespace: str, pods: int) -> dict[str, Any]:
    """Return a PyTorchJob with one master; the other pods are workers."""

    def replicas(count: int) -> dict[str, Any]:
        container = {
            "name": "pytorch",
            "image": "trainer:1",
            "command": ["python", "-m", "trainer"],
            "resources": {"limits": {"finetune.dev/cpu-device": "1"}},
        }
        template = {"spec": {"containers": [container]}}
        return {"replicas": count, "restartPolicy": "Never", "template": template}

    kinds = {"Master": replicas(1)} | ({"Worker": replicas(pods - 1)} if pods > 1 else {})
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"pytorchReplicaSpecs": kinds},
    }

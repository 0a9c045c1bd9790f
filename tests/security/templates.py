"""Pod templates that the restricted Pod Security level admits, and templates that it refuses."""

from typing import Any

from finetune_api.base import Object

LEVEL = {"pod-security.kubernetes.io/enforce": "restricted"}


def trainer(**fields: Any) -> Object:
    """Return a template with fields of the trainer container."""
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


_SIDECAR = {"name": "side", "image": "side:1", "command": ["sleep", "1"]}
_MOUNT = {"name": "scratch", "mountPath": "/scratch"}

ADMITTED: dict[str, Object] = {
    "nothing": {},
    "sidecar": {"spec": {"containers": [_SIDECAR]}},
    "init": {"spec": {"initContainers": [_SIDECAR, {**_SIDECAR, "name": "b"}]}},
    "native-sidecar": {"spec": {"initContainers": [{**_SIDECAR, "restartPolicy": "Always"}]}},
    "environment": trainer(
        env=[
            {"name": "A", "value": "b"},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        envFrom=[{"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "proxy"}}],
    ),
    "volumes": {
        "spec": {
            "containers": [{"name": "trainer", "volumeMounts": [_MOUNT]}],
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "more", "configMap": {"name": "more"}},
                {"name": "keys", "secret": {"secretName": "keys"}},
                {"name": "place", "downwardAPI": {"items": []}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "w"}},
                {"name": "driver", "csi": {"driver": "example.com"}},
            ],
        }
    },
    "resources": trainer(resources={"limits": {"memory": "8Gi"}, "requests": {"cpu": "2"}}),
    "place": {
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "topologySpreadConstraints": [],
            "schedulingGates": [{"name": "example.com/queue"}],
            "imagePullSecrets": [{"name": "registry"}],
        }
    },
    "user": {"spec": {"securityContext": {"runAsUser": 1000, "runAsGroup": 7, "fsGroup": 5}}},
    "own-seccomp": trainer(
        securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}
    ),
    "read-only": trainer(securityContext={"readOnlyRootFilesystem": True}),
    "labels": {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}},
    "nulls": {"metadata": None, "spec": {"securityContext": None, "volumes": None}},
}


def _container(**security: Any) -> Object:
    return trainer(securityContext=security)


_PRIVILEGED = {"privileged": True, "allowPrivilegeEscalation": True}
# A template and the text with which the admission names the refused field.
REFUSED: dict[str, tuple[Object, str]] = {
    "privileged": (_container(**_PRIVILEGED), "privileged"),
    "escalation": (_container(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
    "capabilities": (_container(capabilities={"add": ["SYS_ADMIN"]}), "capabilities"),
    "root": (_container(runAsUser=0), "runAsUser"),
    "root-pod": ({"spec": {"securityContext": {"runAsNonRoot": False}}}, "runAsNonRoot"),
    "seccomp": (_container(seccompProfile={"type": "Unconfined"}), "seccompProfile"),
    "host-network": ({"spec": {"hostNetwork": True}}, "host namespaces"),
    "host-pid": ({"spec": {"hostPID": True}}, "host namespaces"),
    "host-port": (
        {
            "spec": {
                "containers": [
                    {**_SIDECAR, "ports": [{"containerPort": 1, "hostPort": 1}]},
                ]
            }
        },
        "hostPort",
    ),
    "host-path": (
        {"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}},
        "hostPath",
    ),
    "sidecar": (
        {"spec": {"containers": [{**_SIDECAR, "securityContext": _PRIVILEGED}]}},
        "privileged",
    ),
    "init": (
        {"spec": {"initContainers": [{**_SIDECAR, "securityContext": {"runAsUser": 0}}]}},
        "runAsUser",
    ),
    "sysctls": (
        {"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}},
        "sysctls",
    ),
}
# A malformed template and the field that the operator's message names.
BROKEN: dict[str, tuple[Any, str]] = {
    "volumes": ({"spec": {"volumes": "scratch"}}, "spec.volumes"),
    "a volume": ({"spec": {"volumes": [7]}}, "spec.volumes[0]"),
    "security": ({"spec": {"securityContext": "none"}}, "spec.securityContext"),
    "environment": (trainer(env={"A": "b"}), "spec.containers[0].env"),
    "a variable": (trainer(env=["A=b"]), "spec.containers[0].env[0]"),
    "sources": (trainer(envFrom="keys"), "spec.containers[0].envFrom"),
    "mounts": (trainer(volumeMounts=[["a", "/b"]]), "spec.containers[0].volumeMounts[0]"),
    "limits": (trainer(resources={"limits": "1Gi"}), "spec.containers[0].resources.limits"),
    "resources": (trainer(resources=[1]), "spec.containers[0].resources"),
    "of a container": (trainer(securityContext=True), "spec.containers[0].securityContext"),
    "init": ({"spec": {"initContainers": ["side"]}}, "spec.initContainers[0]"),
    "init of another kind": ({"spec": {"initContainers": {"a": 1}}}, "spec.initContainers"),
    "labels": ({"metadata": {"labels": ["a"]}}, "metadata.labels"),
    "annotations": ({"metadata": {"annotations": "a"}}, "metadata.annotations"),
}

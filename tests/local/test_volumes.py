"""Volumes, mounts and variables of containers."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from finetune_local.node import sandbox
from tests.installed import wait_for
from tests.local.pods import container, create, get, pod, run, waiting

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
BINARY = bytes([0xFF, 0x00, 0xFE, 0x0A, 0x80])


def mount(name: str, path: str, **changes):
    return {"name": name, "mountPath": path} | changes


def object_of(kind: str, name: str, **parts):
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **parts}


def encoded(**values: bytes) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in values.items()}


def test_config_maps_and_secrets_as_files_and_variables(cluster):
    create(
        cluster,
        object_of("ConfigMap", "settings", data={"a": "1", "b": "2"}),
        object_of("Secret", "blob", data=encoded(raw=BINARY, half=b"x\xffy")),
    )
    volumes = [
        {
            "name": "settings",
            "configMap": {"name": "settings", "items": [{"key": "b", "path": "deep/b.txt"}]},
        },
        {"name": "blob", "secret": {"secretName": "blob", "defaultMode": 0o400}},
        {"name": "absent", "secret": {"secretName": "nowhere", "optional": True}},
    ]
    mounts = [mount("settings", "/settings"), mount("blob", "/blob"), mount("absent", "/absent")]
    half = {"secretKeyRef": {"name": "blob", "key": "half"}}
    script = (
        "echo $P_a $P_b; ls /settings; cat /settings/deep/b.txt; echo; od -An -tx1 /blob/raw; "
        "stat -L -c %a /blob/raw; ls /absent | wc -l; printf %s $HALF | od -An -tx1"
    )
    item = pod(
        "files",
        container(
            script,
            envFrom=[{"prefix": "P_", "configMapRef": {"name": "settings"}}],
            env=[{"name": "HALF", "valueFrom": half}],
            volumeMounts=mounts,
        ),
        volumes=volumes,
    )
    lines = [line.strip() for line in run(cluster, item).splitlines()]
    assert lines == ["1 2", "deep", "2", "ff 00 fe 0a 80", "400", "0", "78 ff 79"]


def test_a_pod_waits_for_a_missing_secret_key_and_then_starts_once(cluster):
    create(cluster, object_of("Secret", "partial", data=encoded(other=b"1")))
    items = [{"key": "wanted", "path": "w"}]
    volumes = [{"name": "s", "secret": {"secretName": "partial", "items": items}}]
    create(
        cluster,
        pod("patient", container("cat /s/w", volumeMounts=[mount("s", "/s")]), volumes=volumes),
    )
    reason, message = wait_for("the message", lambda: waiting_message(cluster, "patient"))
    assert (reason, message) == (
        "ContainerCreating",
        "secret partial references non-existent key: wanted",
    )
    events = cluster.kubectl("get", "events", "--field-selector", "involvedObject.name=patient")
    assert "FailedMount" in events
    cluster.kubectl("patch", "secret", "partial", "-p", json.dumps({"data": encoded(wanted=b"w")}))
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/patient")
    cluster.kubectl("label", "pod", "patient", "touched=yes")
    assert cluster.kubectl("logs", "patient") == "w"
    events = cluster.kubectl("get", "events", "--field-selector", "involvedObject.name=patient")
    assert events.count("Started container") == 1


def waiting_message(cluster, name: str) -> tuple[str, str] | None:
    found = waiting(cluster, name)
    return found if found[1] else None


NOT_OFFERED = {
    "resource": (
        {
            "downwardAPI": {
                "items": [
                    {
                        "path": "x",
                        "resourceFieldRef": {"resource": "limits.cpu", "containerName": "main"},
                    }
                ]
            }
        },
        "resourceFieldRef is not offered",
    ),
    "path": ({"hostPath": {"path": "/no/such/folder"}}, "/no/such/folder does not exist"),
    "nfs": ({"nfs": {"server": "s", "path": "/"}}, "kind ['nfs'] is not offered"),
}


def test_unsupported_volumes_are_reported(cluster):
    create(
        cluster,
        *(
            pod(
                f"no-{name}",
                container("true", volumeMounts=[mount("v", "/v")]),
                volumes=[{"name": "v"} | volume],
            )
            for name, (volume, _) in NOT_OFFERED.items()
        ),
    )
    for name, (_, expected) in NOT_OFFERED.items():
        _, message = wait_for(name, lambda name=name: waiting_message(cluster, f"no-{name}"))
        assert expected in message
        cluster.kubectl("delete", "pod", f"no-{name}")


def test_host_paths_sub_paths_and_empty_dirs(cluster, tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    (tmp_path / "file").write_text("of the machine")
    volumes = [
        {"name": "host", "hostPath": {"path": str(tmp_path)}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "empty", "emptyDir": {}},
    ]
    mounts = [
        mount("host", "/host", readOnly=True),
        mount("host", "/one/file", subPath="file"),
        mount("memory", "/memory"),
        mount("empty", "/empty"),
    ]
    first = container("echo kept > /empty/a; echo kept > /memory/b", "first", volumeMounts=mounts)
    script = (
        "cat /host/file; echo; cat /one/file; echo; touch /host/x 2>/dev/null || echo refused; "
        "cat /empty/a /memory/b; stat -f -c %T /memory /dev/shm; touch /dev/shm/x && echo shm"
    )
    item = pod(
        "local-volumes",
        container(script, volumeMounts=mounts),
        initContainers=[first],
        volumes=volumes,
    )
    lines = run(cluster, item).splitlines()
    assert lines == [
        *("of the machine", "of the machine", "refused"),
        *("kept", "kept", "tmpfs", "tmpfs", "shm"),
    ]


def test_fs_group_makes_a_claim_writable(cluster):
    claim = object_of("PersistentVolumeClaim", "shared")
    claim["spec"] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}
    create(cluster, claim)
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "shared"}}]
    mounts = [mount("v", "/v")]
    close = container("mkdir /v/d; echo x > /v/d/f; chmod 500 /v/d; chmod 400 /v/d/f; chmod 555 /v")
    run(cluster, pod("closer", close | {"volumeMounts": mounts}, volumes=volumes))
    script = "echo y >> /v/d/f && touch /v/new && stat -c '%g %A' /v/new /v; id -g"
    item = pod(
        "opener",
        container(script, volumeMounts=mounts),
        volumes=volumes,
        securityContext={"fsGroup": 2345, "fsGroupChangePolicy": "OnRootMismatch"},
    )
    new, top, group = run(cluster, item).splitlines()
    assert new.split()[0] == top.split()[0] == group == "2345"
    assert top.split()[1] == "drwxrwsr-x"


def test_with_a_read_only_root_only_volumes_are_writable(cluster):
    volumes = [{"name": "v", "emptyDir": {}}]
    tries = " || ".join(f"touch {folder}/new-file" for folder in ("/tmp", "", "/usr", "/v"))
    script = f"{tries} && echo volume; id -u"
    item = pod(
        "read-only-root",
        container(
            script,
            volumeMounts=[mount("v", "/new/v"), mount("v", "/v")],
            securityContext={"readOnlyRootFilesystem": True},
        ),
        volumes=volumes,
    )
    output = run(cluster, item)
    assert output.count("Read-only file system") == 3
    assert output.endswith("volume\n65532\n")


def test_a_volume_above_the_image_does_not_hide_the_image(cluster):
    """As a volume at /tmp would if the tree were in /tmp."""
    above = str(TREE.parent)
    item = pod(
        "above",
        container(
            f"python -c 'import finetune_api; print(finetune_api.__name__)' && touch {above}/new",
            volumeMounts=[mount("v", above)],
            securityContext={"readOnlyRootFilesystem": True},
        ),
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    assert run(cluster, item) == "finetune_api\n"
    assert not (TREE.parent / "new").exists()


_NESTED = """
import sys; sys.path.insert(0, {tree!r})
from pathlib import Path
from finetune_local.node import sandbox
root = Path({root!r})
sandbox.bind_at(root, {source!r}, "/data", True)
try:
    (root / "data" / "x").touch()
except OSError as error:
    print(error.strerror)
"""


def test_a_read_only_mount_keeps_locked_flags(tmp_path):
    """NFS is often mounted with nosuid and nodev, which a user namespace may not remove."""
    (tmp_path / "source").mkdir()
    (tmp_path / "root").mkdir()
    tree = str(Path(sandbox.__file__).parents[2])
    code = _NESTED.format(tree=tree, root=str(tmp_path / "root"), source=str(tmp_path / "source"))
    space = "unshare --user --map-root-user --mount"
    options = "nosuid,nodev,noexec,noatime"
    script = f'mount -t tmpfs -o {options} none "$1" && exec {space} {sys.executable} -I -S -c "$2"'
    done = subprocess.run(
        [*space.split(), "sh", "-ec", script, "sh", str(tmp_path / "source"), code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert (done.stdout, done.stderr) == ("Read-only file system\n", "")


def test_symbolic_links_are_resolved_inside_the_root(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("/run")
    (tmp_path / "up").symlink_to("../../../var")
    (tmp_path / "loop").symlink_to("/loop")
    assert sandbox.inside(tmp_path, "/var/run/secrets/x") == tmp_path / "run" / "secrets" / "x"
    assert sandbox.inside(tmp_path, "/up/run/y") == tmp_path / "run" / "y"
    assert sandbox.inside(tmp_path, "/../../etc") == tmp_path / "etc"
    with pytest.raises(OSError, match="too many"):
        sandbox.inside(tmp_path, "/loop/x")


def test_hosts_of_a_pod_without_a_service(cluster):
    output = run(cluster, pod("own-hosts", container("cat /etc/hosts; hostname")))
    ip = get(cluster, "own-hosts")["status"]["podIP"]
    assert f"{ip} own-hosts\n" in output
    assert output.endswith("\nown-hosts\n")

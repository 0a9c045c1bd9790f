"""Inputs that cannot be read and volumes that cannot be written: real permissions, real mounts."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.prepare import storage_checks
from tests.trainer.conftest import MakeJob

ERRORS: dict[str, tuple[OSError, int, str]] = {
    "no permission": (
        PermissionError(errno.EACCES, "Permission denied", "/mnt/x"),
        77,
        "pvc://w/x: no permission to read /mnt/x; make it readable for all users (chmod -R a+rX)",
    ),
    "an I/O error": (
        OSError(errno.EIO, "Input/output error"),
        66,
        "pvc://w/x: cannot be read: Input/output error; check the volume",
    ),
    "removed meanwhile": (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/mnt/x"),
        66,
        "pvc://w/x: cannot be read (/mnt/x): No such file or directory; check the volume",
    ),
}


@pytest.mark.parametrize(("error", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_unreadable_input_is_named(error: OSError, code: int, message: str) -> None:
    with pytest.raises(TrainerError) as caught, reading("pvc://w/x"):
        raise error
    assert caught.value.code == code
    assert caught.value.message.startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model/model.safetensors", "data/train.jsonl"])
def test_files_of_another_user_are_named(make_job: MakeJob, file: str) -> None:
    job = make_job()
    path = job.claim / file
    path.chmod(0o600 if os.getuid() == 0 else 0)
    if os.getuid() == 0:  # owned by a user outside the user namespace of the pod
        os.chown(path, 12345, 12345)
    job.mount = "true"
    pod = job.prepare()
    assert pod.wait() == 77, job.log
    assert (pod.result.outcome, pod.result.reason) == ("Failed", "NotPermitted")
    source = "pvc://w/model" if file.startswith("model") else f"pvc://w/{file}"
    assert pod.result.message.startswith(f"{source}: no permission to read {path}; make")
    assert "Traceback" not in job.log


MOUNTS = {
    "full": ("size=4k", "head -c 4096 /dev/zero > $1/filler", "no space is left on the volume"),
    "read-only": ("ro", "true", "the volume is mounted read-only"),
}
PROBE = """
import sys
from pathlib import Path
from finetune_trainer.common import errors
from finetune_trainer.prepare import storage_checks
try:
    storage_checks.check_writable(Path(sys.argv[1]), "pvc://w/runs")
except errors.TrainerError as error:
    print(int(error.code), error.message)
"""


@pytest.mark.parametrize(("options", "then", "message"), MOUNTS.values(), ids=MOUNTS.keys())
def test_volumes_that_cannot_be_written_are_named(
    tmp_path: Path, options: str, then: str, message: str
) -> None:
    script = f'mount -t tmpfs -o {options} none "$1" && {then} && exec "$2" -c "$3" "$1"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh"]
    command = [*unshare, str(tmp_path), sys.executable, PROBE]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.startswith(f"73 pvc://w/runs: {message}")


def test_a_volume_without_hard_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(TrainerError, match=r"runs: the file system has no hard links") as caught:
        storage_checks.check_writable(tmp_path, "pvc://w/runs")
    assert caught.value.code == 73
    assert not list(tmp_path.glob(".*"))

"""`make test-nodes` reports what a computer lacks before anything is built or started."""

import os
import subprocess
import sys

import pytest

PROBLEM = "from tests.nodes import needs; print(needs.unmet())"


def problem(*prefix: str, path: str, cache: str) -> str:
    env = {"PATH": path, "FINETUNE_CACHE": cache}
    command = [*prefix, sys.executable, "-c", PROBLEM]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def test_a_user_without_root_is_refused(tmp_path):
    ordinary = ("unshare", "--user")  # a user that has no name and no rights
    found = problem(*ordinary, path=os.environ["PATH"], cache=str(tmp_path))
    assert found.startswith("containers and networks need root; this is user ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_missing_programs_are_named_by_their_packages(tmp_path):
    found = problem(path=str(tmp_path), cache=str(tmp_path))
    assert found.startswith("programs are missing: apt-get install --no-install-recommends ")
    assert {"runc", "nftables", "buildah"} <= set(found.split())

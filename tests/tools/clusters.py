"""Local clusters of tests: one whose API server keeps an audit log, and removal of dead ones."""

from pathlib import Path

from finetune_local.cache import clusters_folder
from finetune_local.cluster import Cluster, lock_clusters

# Records the requests of service accounts without their bodies. The controllers' own accounts are
# left out: they would be most of the log.
_AUDIT_POLICY = Path(__file__).with_name("audit-policy.yaml")


def audit_log(cluster: Cluster) -> Path:
    """Return the audit log of a cluster that `up_with_audit_log` brought up, one JSON a line."""
    return cluster.directory / "logs" / "audit.log"


def up_with_audit_log(name: str, *, devices: int = 2, nodes: int) -> Cluster:
    """Return a cluster that records what service accounts request and that ends with its caller."""
    flags = [
        f"--audit-policy-file={_AUDIT_POLICY}",
        f"--audit-log-path={audit_log(Cluster(name))}",
        # Blocking: a request that was answered is in the log.
        "--audit-log-mode=blocking",
    ]
    return Cluster.up(name, devices=devices, nodes=nodes, tied=True, api_server_flags=flags)


def remove_dead(prefix: str) -> None:
    """Remove the files of clusters whose names begin with `prefix` and that no longer run.

    A test run that is killed leaves such files: its clusters end with it.
    """
    with lock_clusters():  # no other process is between writing files and starting a cluster
        for file in clusters_folder().glob(f"{prefix}*/cluster.json"):
            cluster = Cluster(file.parent.name)
            if cluster.supervisor() is None:
                cluster.down()

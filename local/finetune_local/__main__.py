"""`finetune-local`: controls the local cluster from the command line."""

import argparse
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from finetune_api.arguments import Parser, whole_number
from finetune_local.build import SOURCE, BuildError, binaries
from finetune_local.cache import TREE
from finetune_local.machine import ClusterError

if TYPE_CHECKING:
    from finetune_local.cluster import Cluster

_EXAMPLES = """examples:
  finetune-local up --devices 4           a cluster named default with one node of 4 devices
  export KUBECONFIG=$(finetune-local kubeconfig)
  finetune-local down
"""


def main() -> int:
    """Run one command; return 0 on success, 1 after printing an error, 130 if interrupted."""
    try:
        arguments = _parser().parse_args()
        if not SOURCE.is_dir():
            raise ClusterError(
                f"{SOURCE} does not exist: this program builds the control plane from a checkout "
                "of the repository; run `make setup` there, and then .venv/bin/finetune-local"
            )
        code: int = arguments.run(arguments)
        return code
    except (ClusterError, BuildError) as error:
        print(f"finetune-local: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"finetune-local: the package {error.name} is not installed; run `make setup` in "
            f"{TREE}, or pip install --editable '{TREE}[local]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="finetune-local",
        description="A real Kubernetes control plane with nodes that run pods as local processes. "
        "It isolates nothing and is meant for trying things out and for tests, by one user on one "
        "machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("finetune-operator"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: object) -> Parser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        if name not in ("build", "demo"):
            added.add_argument(
                "--name", default="default", help="name of the cluster (default: default)"
            )
        return added

    up = command("up", "start a cluster and wait until it is ready", _up)
    up.add_argument(
        "--devices", type=whole_number(1, 1000), default=2, help="devices per node (default: 2)"
    )
    up.add_argument(
        "--nodes", type=whole_number(0, 100), default=1, help="number of nodes (default: 1)"
    )
    command("down", "end a cluster and remove its files", _down)
    command("status", "show whether a cluster runs, its files and its nodes", _status)
    command("kubeconfig", "print the path of the administrator's kubeconfig", _kubeconfig)
    command("build", "build the control plane if it is not built yet", _build)
    demo = command("demo", "fine-tune a real model (examples/smollm2-chat.yaml)", _demo)
    demo.add_argument("--keep", action="store_true", help="leave the cluster up afterwards")
    return parser


def _cluster(arguments: argparse.Namespace) -> "Cluster":
    # Imported late, because `--version` and `--help` need none of the packages of a cluster.
    from finetune_local.cluster import Cluster

    return Cluster(arguments.name)


def _up(arguments: argparse.Namespace) -> int:
    cluster = _cluster(arguments).up(
        arguments.name, devices=arguments.devices, nodes=arguments.nodes
    )
    print(f"cluster {cluster.name} is up: {cluster.settings.server}")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  export PATH={binaries()}:$PATH    # kubectl")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    cluster = _cluster(arguments)
    if (owner := cluster.other_checkout()) is not None:
        raise ClusterError(
            f"cluster {cluster.name!r} was started from the checkout {owner}, and this is {TREE}; "
            f"take it down there: {owner}/.venv/bin/finetune-local down --name {cluster.name}"
        )
    cluster.down()
    print(f"cluster {arguments.name} is down")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    cluster = _cluster(arguments)
    pid = cluster.supervisor()
    if pid is None:
        print(f"cluster {arguments.name} is down")
        return 1
    print(f"cluster {arguments.name} is up: {cluster.settings.server}, process {pid}")
    print(f"started from {cluster.settings.tree}")
    print(f"files: {cluster.directory}")
    print(cluster.kubectl("version").strip())
    print(cluster.kubectl("get", "nodes", "-o", "wide").strip())
    return 0


def _kubeconfig(arguments: argparse.Namespace) -> int:
    cluster = _cluster(arguments)
    if cluster.supervisor() is None:
        raise ClusterError(f"cluster {cluster.name!r} is down; bring it up: finetune-local up")
    print(cluster.kubeconfig)
    return 0


def _build(_: argparse.Namespace) -> int:
    print(f"control plane: {binaries()}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from finetune_local.demo import run

    # The demo must never touch another cluster that the environment names.
    os.environ.pop("KUBECONFIG", None)
    return run.run(keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())

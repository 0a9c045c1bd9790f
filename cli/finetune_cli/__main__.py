"""`kubectl finetune`: kubectl runs this program, which is `kubectl-finetune` on the PATH."""

import argparse
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from finetune_api.arguments import Parser, whole_number
from finetune_cli.errors import CliError

if TYPE_CHECKING:
    from finetune_cli.cluster import Cluster

_EXAMPLES = """examples:
  kubectl finetune watch smollm2-chat             show the job live until it has finished
  kubectl finetune logs smollm2-chat -f           follow worker 0, also in later attempts
  kubectl finetune logs smollm2-chat --worker 1 --attempt 2
  kubectl finetune logs smollm2-chat --prepare    show how the data was prepared
"""


def main() -> int:
    """Run one command; return 0 on success, 1 after printing an error, 130 if interrupted."""
    try:
        arguments = _parser().parse_args()
        # These imports take most of a second and are here so that an interrupt meanwhile shows no
        # traceback.
        from finetune_cli.cluster import Cluster
        from finetune_cli.kubeconfig import Place

        place = Place(arguments.kubeconfig, arguments.context, arguments.namespace)
        code: int = arguments.run(Cluster(place), arguments)
        return code
    except CliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; avoid another flush of stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> Parser:
    parser = Parser(
        prog="kubectl finetune",
        description="Watch FineTuneJobs and read their logs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("finetune-operator"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: object) -> Parser:
        added = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("name", metavar="NAME", help="name of the FineTuneJob")
        added.add_argument("-n", "--namespace", help="namespace (default: the one of the context)")
        added.add_argument("--context", help="context of the kubeconfig (default: the current one)")
        added.add_argument(
            "--kubeconfig", help="kubeconfig file (default: $KUBECONFIG or ~/.kube/config)"
        )
        added.set_defaults(run=run)
        return added

    command(
        "watch",
        "show a job live until it has finished; if stdout is not a terminal, print plain lines",
        _watch,
    )
    log = command("logs", "print the log of one worker", _logs)
    log.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="follow the log, also of later attempts, until the job has finished",
    )
    log.add_argument(
        "--worker", type=whole_number(0), default=0, help="index of the worker (default: 0)"
    )
    log.add_argument(
        "--attempt", type=whole_number(1), help="number of the attempt (default: the newest)"
    )
    log.add_argument(
        "--prepare",
        action="store_true",
        help="print the log of the prepare pod instead of a worker",
    )
    log.add_argument("--tail", type=whole_number(0), help="print only so many lines from the end")
    log.add_argument("--timestamps", action="store_true", help="print the time of each line")
    return parser


def _watch(cluster: "Cluster", arguments: argparse.Namespace) -> int:
    from finetune_cli import watch

    return watch.run(cluster, arguments.name)


def _logs(cluster: "Cluster", arguments: argparse.Namespace) -> int:
    from finetune_cli import logs
    from finetune_cli.select import Selection

    selection = Selection(arguments.worker, arguments.attempt, arguments.prepare)
    options = logs.Options(arguments.follow, arguments.tail, arguments.timestamps)
    return logs.run(cluster, arguments.name, selection, options)


if __name__ == "__main__":
    sys.exit(main())

"""Compares our trainer with Hugging Face Trainer and DeepSpeed on the same work; prints a table.

The work is SmolLM2-135M-Instruct and the complete conversations of PyPI's chitchat-dataset, whose
lengths differ a lot, or, with --data exchanges, the short ones of the demo. Our trainer packs them
into rows. The peer gets exactly the conversations in the rows that ours trains on, with the same
tokens and the same labels (assistant turns only), and pads each micro-batch to its longest one.
Both sides have the same model, tokens, labels, precision (bf16 with fp32 master weights, or fp32),
ZeRO stage, AdamW constants, gradient clipping, processes, threads and number of optimizer steps. A
step of ours has --micro-batch rows x --accumulate on each process. A step of the peer has the same
number of conversations as ours on average, rounded to complete micro-batches, and so has one of its
micro-batches unless --peer-micro-batch is set. The data are tokenized beforehand for both.

The peer is written as an experienced user would write it (benchmarks/trainers/hf_trainer.py):
dynamic padding, sdpa attention, fused AdamW, and liger-kernel where it is installed and there are
GPUs. It runs three times: in random order, with group_by_length, and packed without padding. Ours
is the supervisor with its ranks, as in a pod. Each one runs alone, in its own processes.

Throughput does not count the first --warm-up steps, the save and the steps after it. MFU is
6 x N x tokens and causal attention (6 x layers x width x length^2), divided by the rate of a large
matmul that all processes run at the same time. It never counts padding.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import os
import shutil
import signal

from benchmarks.operators.show import console
from benchmarks.trainers import matmul, ours, peer, show, workload
from benchmarks.trainers.gang import GangError

from finetune_local.cache import TREE

OUT = TREE / "build" / "benchmarks" / "trainer"


def main() -> int:
    """Run the command line."""
    parser = _parser()
    options = parser.parse_args()
    _complete(parser, options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A process that a shell starts in the background ignores SIGINT unless it sets a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        work = workload.make(options, OUT)
        contenders = [ours.run] * options.ours + [peer.plain] * options.plain
        contenders += [peer.grouped] * options.grouped + [peer.packed] * options.packed
        contenders *= options.rounds  # interleaved, for a machine that is shared with other work
        peaks, found = [], []
        for run in contenders:
            os.sync()  # so that writes of the previous contender do not slow down this one
            peaks.append(matmul.measure(options, OUT))
            console.print(f"matmul: {peaks[-1] / 1e9:.0f} GFLOP/s, {options.world} processes")
            found.append(run(options, work, OUT))
            # So that a long run that is interrupted has printed its figures.
            text = show.table(options, work, found, max(peaks))
            console.print(text, markup=False)
        print(text)
    except GangError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    shutil.rmtree(OUT / "claim")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/trainer.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--shape", choices=workload.SHAPES, help="random Llama of this size instead of SmolLM2")
    add(
        "--data",
        choices=("whole", "exchanges"),
        default="whole",
        help="conversations (default: whole)",
    )
    add("--precision", choices=("BF16", "FP32"), default="BF16", help="precision (default: BF16)")
    add("--stage", type=int, choices=(1, 2, 3), default=2, help="ZeRO stage (default: 2)")
    add("--world", type=int, help="processes (default: the number of GPUs, or 2 without GPUs)")
    add(
        "--sequence-length",
        type=int,
        default=1024,
        help="tokens per row; longer conversations are truncated (default: 1024)",
    )
    add("--micro-batch", type=int, default=1, help="rows per forward pass (default: 1)")
    add("--accumulate", type=int, default=1, help="forward passes per step (default: 1)")
    add("--peer-micro-batch", type=int, help="conversations per forward pass (default: as ours)")
    add("--recompute", action="store_true", help="recompute activations on both sides")
    add("--steps", type=int, default=40, help="optimizer steps (default: 40)")
    add("--warm-up", type=int, default=5, help="first steps, which are not counted (default: 5)")
    add("--after-save", type=int, default=10, help="last steps, after the only save (default: 10)")
    add("--ours", action=switch, default=True, help="measure our trainer")
    add("--plain", action=switch, default=True, help="measure the peer with random order")
    add("--grouped", action=switch, default=True, help="measure the peer with group_by_length")
    add("--packed", action=switch, default=True, help="measure the peer with packed micro-batches")
    add("--rounds", type=int, default=1, help="times that all contenders run in turn (default: 1)")
    add(
        "--peer-malloc",
        action="store_true",
        help="give the peer the malloc settings that our supervisor gives its ranks on CPU",
    )
    return parser


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Add options that depend on the machine; end with an error if options contradict."""
    import torch

    options.cuda = torch.cuda.is_available()
    options.world = options.world or (torch.cuda.device_count() if options.cuda else 2)
    options.threads = max(1, len(os.sched_getaffinity(0)) // options.world)
    options.saved = options.steps - options.after_save
    if not (options.ours or options.plain or options.grouped or options.packed):
        parser.error("nothing to measure: all contenders are disabled")
    if options.after_save < 2 or options.saved <= options.warm_up:
        parser.error(
            "--steps must be larger than --warm-up plus --after-save, which must be at least 2"
        )


if __name__ == "__main__":
    sys.exit(main())

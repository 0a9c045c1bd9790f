"""Our trainer beside Hugging Face Trainer + DeepSpeed, on the same work: prints a table.

The work: SmolLM2-135M-Instruct and the conversations of PyPI's chitchat-dataset, whole, so that
their lengths differ a lot (--data exchanges: the short ones of the demo). Our trainer packs them
into rows. The peer gets the very conversations that lie in the rows which ours trains on, with the
same tokens and the same labels (assistant turns only), and pads each micro-batch to its longest.
Equal on both sides: model, tokens, labels, precision (bf16 with an fp32 master, or fp32), ZeRO
stage, AdamW and its constants, clipping, processes and threads, number of optimizer steps. A step
of ours is --micro-batch rows x --accumulate on each process; a step of the peer has as many
conversations as ours has on average, rounded to whole micro-batches. Of a micro-batch of rows and
one of conversations the same is true, unless --peer-micro-batch says otherwise. Data are tokenised
beforehand for both.

The peer is what somebody who knows it would write (benchmarks/trainers/hf_trainer.py): dynamic
padding, sdpa attention, fused AdamW, and a second time with group_by_length. Ours is the supervisor
with its ranks, as in a pod. Each runs alone, in processes of its own.

Not counted as throughput: the first --warm-up steps, and the save and the steps after it. MFU is
6 x N x tokens and causal attention (6 x layers x width x length^2) over what a large matmul reaches
here when all processes run one at the same time; padding is never counted.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # Started as a file: this folder would hide the standard library's `operator`.
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
    """Command line."""
    parser = _parser()
    options = parser.parse_args()
    _choose(parser, options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # SIGINT is ignored in what a shell starts in the background, until somebody handles it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    try:
        work = workload.make(options, OUT)
        contenders = [ours.run] * options.ours + [peer.plain] * options.plain
        contenders += [peer.grouped] * options.grouped
        peaks, found = [], []
        for run in contenders:
            os.sync()  # what the one before has written is not the next one's burden
            peaks.append(matmul.measure(options, OUT))
            console.print(f"matmul: {peaks[-1] / 1e9:.0f} GFLOP/s, {options.world} processes")
            found.append(run(options, work, OUT))
            # A long run that is interrupted has told what it found.
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
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--shape", choices=workload.SHAPES, help="random Llama of this size instead of SmolLM2")
    add("--data", choices=("whole", "exchanges"), default="whole", help="conversations (whole)")
    add("--precision", choices=("BF16", "FP32"), default="BF16", help="BF16")
    add("--stage", type=int, choices=(1, 2, 3), default=2, help="ZeRO stage (2)")
    add("--world", type=int, help="processes (all GPUs; 2 without)")
    add("--sequence-length", type=int, default=1024, help="tokens a row; longer is cut (1024)")
    add("--micro-batch", type=int, default=1, help="rows of a forward pass (1)")
    add("--accumulate", type=int, default=1, help="forward passes of a step (1)")
    add("--peer-micro-batch", type=int, help="conversations of a forward pass (as many as ours)")
    add("--recompute", action="store_true", help="recompute activations, on both sides")
    add("--steps", type=int, default=40, help="optimizer steps (40)")
    add("--warm-up", type=int, default=5, help="of them first, not counted (5)")
    add("--after-save", type=int, default=10, help="of them after the one save (10)")
    add("--ours", action=switch, default=True, help="measure ours")
    add("--plain", action=switch, default=True, help="measure the peer, random order")
    add("--grouped", action=switch, default=True, help="measure the peer, group_by_length")
    add(
        "--peer-malloc",
        action="store_true",
        help="give the peer the malloc settings that our supervisor gives its ranks on CPU",
    )
    return parser


def _choose(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What depends on the machine, and what cannot be."""
    import torch

    options.cuda = torch.cuda.is_available()
    options.world = options.world or (torch.cuda.device_count() if options.cuda else 2)
    options.threads = max(1, len(os.sched_getaffinity(0)) // options.world)
    options.saved = options.steps - options.after_save
    if not (options.ours or options.plain or options.grouped):
        parser.error("nothing is left to measure")
    if options.after_save < 2 or options.saved <= options.warm_up:
        parser.error("--steps must be more than --warm-up and --after-save (2 or more)")


if __name__ == "__main__":
    sys.exit(main())

"""One rank's part in one attempt."""

import logging
import os
import sys
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_trainer.checkpoint.write import Owner
from finetune_trainer.common.environment import run_config
from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.common.reporter import ChannelReporter
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.model import language_model
from finetune_trainer.model.engine import Engine
from finetune_trainer.run_dir.paths import RunPaths, check_cached
from finetune_trainer.training import out_of_memory, rendezvous
from finetune_trainer.training.collectives import local_trouble, lost_a_peer
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.rendezvous import Place

# Long enough for the slowest peer to load its model; a dead peer is noticed at once on gloo, and by
# the supervisor's rules elsewhere.
_TIMEOUT = timedelta(minutes=10)


def main() -> None:
    """Never returns: a process group that is torn down by the interpreter may abort (SIGABRT)."""
    rank = os.environ.get("RANK")
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s [rank {rank}] %(message)s")
    if rank != "0":
        logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    code = _guarded(ChannelReporter.from_environment())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _guarded(report: ChannelReporter) -> int:
    try:
        return _train(report)
    except TrainerError as error:
        report.error(error)
        return int(error.code)
    except Exception as error:
        if out_of_memory.is_one(error):
            world = Place.from_environment().world
            advice = out_of_memory.message(run_config(), world, out_of_memory.said(error))
            report.error(TrainerError(ExitCode.OUT_OF_MEMORY, advice))
            return int(ExitCode.OUT_OF_MEMORY)
        if trouble := local_trouble(error):
            message = (
                f"NCCL does not work here: {trouble[:512]}; look at the GPUs, the driver and the "
                "network interfaces of the node; NCCL_DEBUG=INFO in workers.template says more"
            )
            report.error(TrainerError(ExitCode.ENVIRONMENT_UNUSABLE, message))
            return int(ExitCode.ENVIRONMENT_UNUSABLE)
        if lost_a_peer(error):  # the trace of a collective would bury whose fault it was
            text = str(error).strip().splitlines()
            message = f"a peer was lost: {text[0] if text else type(error).__name__}"
            report.error(TrainerError(ExitCode.PEER_LOST, message[:512]))
            return int(ExitCode.PEER_LOST)
        traceback.print_exc()
        return 1


def _train(report: ChannelReporter) -> int:
    config, place = run_config(), Place.from_environment()
    plan = config.plan
    if plan is None or config.run_digest is None or config.prepared_digest is None:
        raise TrainerError(ExitCode.BAD_CONFIGURATION, "a worker needs plan, data and run digest")
    report.stage("LoadingModel")
    device = rendezvous.join(place, _TIMEOUT)
    # A save or a look at a checkpoint may take longer than any step: a rank that hangs there is the
    # supervisor's to find, and it comes first.
    patience = timedelta(seconds=2 * config.progress_deadline_seconds)
    control = dist.new_group(backend="gloo", timeout=max(_TIMEOUT, patience))
    epoch = _shared_epoch(control)
    paths = RunPaths.of(config)
    dtype = torch.bfloat16 if config.training.precision == "BF16" else torch.float32
    torch.manual_seed(config.training.seed + place.rank)
    if place.rank == 0:
        logging.info(
            "attempt %d, %d ranks, ZeRO stage %d", config.attempt, place.world, plan.zero_stage
        )
    check_cached(config, paths.model)
    with reading(config.model.source):
        model = language_model.load(paths.model, dtype)
    report.advance()
    engine = Engine(model, config.training, plan)
    owner = Owner(config.job_uid, config.run_digest, config.attempt, epoch)
    # Until here SIGTERM just ends the process: there is nothing to save, and a peer that is not
    # there yet would be waited for until the grace period is over.
    stop = StopSignal()
    loop = Loop(config, plan, engine, paths, owner, report, device, control, stop)
    try:
        finished = loop.run()
        dist.barrier(control)
    except Exception as error:
        if not (stop.is_set() and not loop.unsaved and lost_a_peer(error)):
            raise
        finished = False  # the peer was told to stop a moment before us
    finally:
        loop.log.close()
    if finished and place.rank == 0:
        report.result(final_step=loop.state.step)
    return _finish(report, config, loop, finished)


def _shared_epoch(control: Any) -> int:
    """Worker 0's supervisor claimed the fence; every rank learns the epoch from rank 0."""
    value = [int(sys.argv[1])]
    dist.broadcast_object_list(value, src=0, group=control)
    return value[0]


def _finish(report: ChannelReporter, config: RunConfig, loop: Loop, finished: bool) -> int:
    if finished:
        return int(ExitCode.DONE)
    message = f"attempt {config.attempt} stopped as it was asked to; "
    if loop.unsaved:
        message += (
            f"{loop.unsaved} steps after step {loop.saved_step} are not saved; "
            "raise runPolicy.terminationGracePeriodSeconds, or save to faster storage"
        )
    else:
        message += f"everything up to step {loop.state.step} is saved"
    report.error(TrainerError(ExitCode.STOPPED, message))
    return int(ExitCode.STOPPED)

"""One rank's part in one attempt: set up, train, and turn the end into an exit code."""

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
from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.checkpoint.fragments import Snapshot
from finetune_trainer.checkpoint.retention import Retention
from finetune_trainer.checkpoint.saver import Saver
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common import host_memory
from finetune_trainer.common.environment import run_config
from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.common.reporter import ChannelReporter, Reporter
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.data import prepared
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model import loading
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.language_model import LanguageModel
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.run_dir.paths import Cache, RunPaths
from finetune_trainer.tracking.run_log import RunLog
from finetune_trainer.training import kernel_choice, out_of_memory, rendezvous
from finetune_trainer.training.divergence import Divergence
from finetune_trainer.training.evaluate import Evaluator
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.place import Place
from finetune_trainer.training.rendezvous import local_problem, lost_a_peer
from finetune_trainer.training.step import Stepper
from finetune_trainer.training.telemetry import ProgressMeter, Telemetry
from finetune_trainer.training.triggers import Limits, Triggers

# Long enough for the slowest rank to load its model. With gloo, the death of a peer is noticed at
# once; otherwise the supervisor's rules find it.
_TIMEOUT = timedelta(minutes=10)


def main() -> None:
    """Train and end the process; never returns.

    The process ends by os._exit: if the interpreter tears down a process group, it may abort
    (SIGABRT).
    """
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
    """Train and return the exit code; report the error if there is one."""
    try:
        return _train(report)
    except TrainerError as error:
        report.error(error)
        return int(error.code)
    except Exception as error:
        planned = _planned_end(error)
        if planned is None:
            traceback.print_exc()
            return 1
        report.error(planned)
        return int(planned.code)


def _planned_end(error: Exception) -> TrainerError | None:
    """Return the TrainerError that explains an error of torch or NCCL, if it is a known one."""
    if host_memory.is_exhausted(error):
        plan = run_config().plan
        advice = host_memory.message(host_memory.cause(error), plan.offload if plan else "None")
        return TrainerError(ExitCode.OUT_OF_MEMORY, advice)
    if out_of_memory.is_out_of_memory(error):
        config, world = run_config(), Place.from_environment().world
        assert config.plan is not None
        advice = out_of_memory.message(
            config.plan, config.training, world, out_of_memory.cause(error)
        )
        return TrainerError(ExitCode.OUT_OF_MEMORY, advice)
    if problem := local_problem(error):
        return TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"NCCL does not work on this node: {problem[:512]}; check the GPUs, the driver and the "
            "network interfaces of the node; NCCL_DEBUG=INFO in workers.template logs more",
        )
    if lost_a_peer(error):  # a traceback would hide that the cause is another rank
        text = str(error).strip().splitlines()
        message = f"a peer was lost: {text[0] if text else type(error).__name__}"
        return TrainerError(ExitCode.PEER_LOST, message[:512])
    return None


def _train(report: ChannelReporter) -> int:
    config, place = run_config(), Place.from_environment()
    plan = config.plan
    if plan is None or config.run_digest is None or config.prepared_digest is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            "the run configuration of a worker needs plan, runDigest and preparedDigest; update "
            "the operator",
        )
    report.stage("LoadingModel")
    deadline = config.progress_deadline_seconds
    paths = RunPaths.of(config)
    dtype = loading.dtype_of(config.training)
    kernels = kernel_choice.check(
        rendezvous.device_of(place.local_rank), paths.model, dtype, report.advance
    )
    device = rendezvous.join(place, _TIMEOUT, report.waiting, deadline)
    # Saving or reading a checkpoint may take longer than any step. A rank that hangs there is found
    # by the supervisor first, after the progress deadline.
    storage_timeout = timedelta(seconds=2 * config.progress_deadline_seconds)
    control = dist.new_group(backend="gloo", timeout=max(_TIMEOUT, storage_timeout))
    fence_epoch = _shared_fence_epoch(control)
    kernels = kernel_choice.agree(kernels, place, control)
    torch.manual_seed(config.training.seed + place.rank)
    if place.rank == 0:
        logging.info(
            "attempt %d, %d ranks, ZeRO stage %d", config.attempt, place.world, plan.zero_stage
        )
    engine = Engine(_load_model(config, paths, report), config.training, plan, kernels)
    storage = RunStorage(paths, config.job_uid, config.run_digest, config.attempt, fence_epoch)
    # Before this point SIGTERM ends the process: nothing could be saved, and ranks that have not
    # started yet would be waited for until the grace period is over.
    stop = StopSignal()
    loop = build_loop(config, engine, Ranks.of(device, control), storage, report, stop)
    try:
        is_complete = loop.run(config.highest_step)
        dist.barrier(control)
    except Exception as error:
        if not (stop.is_set() and not loop.unsaved and lost_a_peer(error)):
            raise
        is_complete = False  # the peer was asked to stop a moment earlier, and has left
    finally:
        loop.close()
    if not is_complete:
        raise TrainerError(ExitCode.STOPPED, _stop_message(config.attempt, loop))
    if place.rank == 0:
        report.result(final_step=loop.state.step)
    return int(ExitCode.DONE)


def _load_model(config: RunConfig, paths: RunPaths, report: ChannelReporter) -> LanguageModel:
    assert config.plan is not None
    Cache.of(config).check_model(config.model.source, paths.model)
    with reading(config.model.source):
        model = loading.load(paths.model, config.training, config.plan, report.advance)
    report.advance()
    return model


def _shared_fence_epoch(control: Any) -> int:
    """Return the fence epoch that worker 0's supervisor claimed, from rank 0; collective."""
    value = [int(sys.argv[1])]
    dist.broadcast_object_list(value, src=0, group=control)
    return value[0]


def _stop_message(attempt: int, loop: Loop) -> str:
    message = f"attempt {attempt} stopped as requested; "
    if loop.unsaved and loop.problem:
        return message + (
            f"{loop.unsaved} steps after step {loop.saved_step} are not saved: {loop.problem}"
        )
    if loop.unsaved:
        return message + (
            f"{loop.unsaved} steps after step {loop.saved_step} are not saved; "
            "raise runPolicy.terminationGracePeriodSeconds, or save to faster storage"
        )
    return message + f"everything up to step {loop.state.step} is saved"


def build_loop(
    config: RunConfig,
    engine: Engine,
    ranks: Ranks,
    storage: RunStorage,
    report: Reporter,
    stop: StopSignal,
) -> Loop:
    """Return the loop of one attempt. `config` must have a plan and a digest of prepared data."""
    plan, paths = config.plan, storage.paths
    assert plan is not None
    assert config.prepared_digest is not None
    folder = paths.prepared(config.prepared_digest)
    rows = Rows(folder, "train")
    sequence = prepared.sequence(folder, config.dataset.train, config.training.seed)
    evaluator = Evaluator(engine, Rows(folder, "validation"), plan, ranks, storage, report)
    utilisation = Utilisation.known(
        engine.model.model,
        rows,
        ranks.world,
        ranks.device,
        bf16=config.training.precision == "BF16",
    )
    meter = ProgressMeter(
        plan,
        sequence.rows_per_epoch,
        config.highest_step,
        utilisation,
        kernel_problem=engine.kernels.problem,
        device=ranks.device,
    )
    retention = Retention(storage, config.checkpoints.keep_last, report)
    saver = Saver(Snapshot(engine, ranks), retention, ranks, report.advance)
    return Loop(
        Stepper(engine, ranks, rows, sequence, config.training, plan),
        evaluator,
        Checkpointer(engine, saver, retention, ranks, report),
        Triggers(plan.total_steps, config.checkpoints, config.evaluation, ranks.rank),
        Telemetry(
            meter, report, RunLog(config, paths, storage.fence_epoch, ranks.rank), ranks.rank
        ),
        Limits(
            stop,
            ranks,
            termination_grace_period_seconds=config.termination_grace_period_seconds,
            progress_deadline_seconds=config.progress_deadline_seconds,
        ),
        Divergence(plan.learning_rate),
    )

"""Builds the training loop of a rank from its configuration."""

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.checkpoint.retention import Retention
from finetune_trainer.checkpoint.saver import Saver
from finetune_trainer.checkpoint.snapshot import Snapshot
from finetune_trainer.checkpoint.storage import RunStorage
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.data import prepared
from finetune_trainer.data.rows import Rows
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.tracking.run_log import RunLog
from finetune_trainer.training.divergence import Divergence
from finetune_trainer.training.evaluate import Evaluator
from finetune_trainer.training.limits import Limits
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.progress import ProgressMeter
from finetune_trainer.training.step import Stepper
from finetune_trainer.training.telemetry import Telemetry
from finetune_trainer.training.triggers import Triggers


def build(
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
    evaluator = Evaluator(
        engine, Rows(folder, "validation"), plan.micro_batch_size, ranks, paths, report
    )
    utilisation = Utilisation.known(
        engine.model.model.config,
        rows,
        ranks.world,
        ranks.device,
        bf16=config.training.precision == "BF16",
    )
    meter = ProgressMeter(plan, sequence.rows_per_epoch, config.highest_step, utilisation)
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

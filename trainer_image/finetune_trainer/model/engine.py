"""Wraps DeepSpeed: its configuration, its steps and its pitfalls.

The rest of the trainer need not know that:

* DeepSpeed's managed gradient accumulation silently loses micro-batches in ZeRO-1 and 2 if steps
  are counted by hand. The unmanaged mode does not.
* It accumulates gradients in bf16 by default.
* It scales the loss by its own accumulation count.
* Its step counter also counts skipped steps.
"""

from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Plan
from finetune_api.spec import Training
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import buckets
from finetune_trainer.model.chunked_adamw import ChunkedAdamW
from finetune_trainer.model.compact_adamw import CompactAdamW
from finetune_trainer.model.fast_imports import load_deepspeed
from finetune_trainer.model.kernels import ADAMW, Kernels
from finetune_trainer.model.language_model import Batch, LanguageModel
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.model.router_loss import router_loss

_MOMENTS = {"FP32": torch.float32, "BF16": torch.bfloat16}
_INTEGERS = {2: torch.int16, 4: torch.int32}


class Engine:
    """The model and its optimizer, as one rank holds them."""

    def __init__(
        self,
        model: LanguageModel,
        training: Training,
        plan: Plan,
        kernels: Kernels = Kernels.without_gpu(),  # noqa: B008, frozen
    ) -> None:
        deepspeed = load_deepspeed()
        deepspeed.init_distributed(verbose=False)
        # DeepSpeed refuses optimizers that it does not know. Tests compare these with plain torch.
        known = deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS
        known.extend({ChunkedAdamW, CompactAdamW} - set(known))
        model.router = router_loss(model.model.config, "the model", training.router_aux_loss)
        if plan.activation_checkpointing == "Always":
            model.recompute_activations()
        kernels.apply(model)
        optimizer = _optimizer(model, training, plan, fused=ADAMW in kernels.used)
        self.model, self.kernels = model, kernels
        self.moment_dtype = _MOMENTS[training.optimizer.moment_precision]
        self.stage = plan.zero_stage
        config = configuration(training, plan, buckets.parameters_of(model))
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.optimizer: Any = self.deepspeed.optimizer
        if self.stage < 3 and training.precision == "FP32":
            # Off by default in fp32. One gradient that is not finite would destroy the weights.
            self.optimizer.check_grad_overflow = True
            _share_weights(self.optimizer)
        self.deepspeed.train()
        _assert_fp32_master(self.optimizer, self.stage)

    def backward(self, batch: Batch, scale: float) -> torch.Tensor:
        """Accumulate the gradient of scale x (sum of token losses), and return the detached sum.

        The loss of routers is in the gradient and not in the sum; it is `model.router_share`.
        """
        loss: torch.Tensor = self.deepspeed(batch)
        self.deepspeed.backward(loss * scale, scale_wrt_gas=False)
        if self.model.router is None:
            return loss.detach()
        return loss.detach() - self.model.router_share

    def step(self, learning_rate: float) -> tuple[Any, bool]:
        """Make one optimizer step.

        Returns the gradient norm before clipping, and whether the step was applied. The norm is a
        float or a scalar on the device, for which this method does not wait.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm()
        return 0.0 if norm is None else norm, bool(self.deepspeed.was_step_applied())

    @torch.no_grad()
    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of token losses, without gradients."""
        self.deepspeed.eval()
        try:
            loss: torch.Tensor = self.deepspeed(batch)
            return loss
        finally:
            self.deepspeed.train()


def configuration(training: Training, plan: Plan, parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a model of so many parameters (pure)."""
    bf16 = training.precision == "BF16"
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": 1,  # unused: each step() ends an accumulation
        "managed_gradient_accumulation": False,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": plan.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            # With it, the addresses of fragments are silently wrong; see checkpoint/fragments.py.
            "round_robin_gradients": False,
            **buckets.sizes(parameters),
            **_offload(plan),
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _offload(plan: Plan) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    parts = {
        "None": (),
        "Optimizer": ("offload_optimizer",),
        "OptimizerAndParameters": ("offload_optimizer", "offload_param"),
    }
    return {part: host for part in parts[plan.offload]}


def _optimizer(
    model: LanguageModel, training: Training, plan: Plan, *, fused: bool
) -> torch.optim.Optimizer:
    """Return AdamW in the variant that fits the device of the master weights."""
    options = training.optimizer
    groups = _groups(model, options.weight_decay)
    betas = (options.beta1, training.beta2)
    if options.moment_precision == "BF16":
        return CompactAdamW(
            groups, lr=plan.learning_rate, betas=betas, eps=options.epsilon, seed=training.seed
        )
    if not torch.cuda.is_available():
        # Not the fused variant: its results depend on how a ZeRO stage slices the weights.
        return ChunkedAdamW(groups, lr=plan.learning_rate, betas=betas, eps=options.epsilon)
    # For master weights on the host, the fused variant is as fast as DeepSpeed's own, and it needs
    # no compiler (docs/design/adr/0018).
    return torch.optim.AdamW(
        groups, lr=plan.learning_rate, betas=betas, eps=options.epsilon, fused=fused or None
    )


def _groups(model: LanguageModel, decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups. Norms, biases and embeddings get no weight decay."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    names = model.names()
    embeddings = {id(model.model.get_input_embeddings().weight), id(model.model.lm_head.weight)}
    for parameter in model.model.parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # of ZeRO-3, if it is partitioned
        # The biases of all experts of a layer are one matrix.
        is_bias = names[id(parameter)].endswith("bias")
        decays = len(shape) >= 2 and not is_bias and id(parameter) not in embeddings
        (matrices if decays else others).append(parameter)
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _share_weights(optimizer: Any) -> None:
    """Let fp32 master weights be this rank's part of the weights that it computes with (ZeRO 1, 2).

    DeepSpeed makes a copy, which the steps then keep equal to the original.
    """
    masters = optimizer.single_partition_of_fp32_groups
    parts = optimizer.parallel_partitioned_bit16_groups
    for group, master, parts_of_ranks in zip(optimizer.bit16_groups, masters, parts, strict=True):
        part = parts_of_ranks[dist.get_rank()]
        if part.device != master.device:
            continue  # the master weights are offloaded
        master.data = part.data
        for parameter in group:
            mapping = parameter._hp_mapping  # has a view of the copy
            if mapping is not None:
                address = mapping.hp_fragment_address
                mapping.hp_fragment = part.data.narrow(0, address.start, address.numel)


def _assert_fp32_master(optimizer: Any, stage: int) -> None:
    """Raise TrainerError (78) if the master weights are not fp32.

    In bf16, updates that are smaller than its resolution would be lost.
    """
    if stage == 3:
        masters = optimizer.fp32_partitioned_groups_flat
    elif type(optimizer).__name__ == "BF16_Optimizer":
        masters = optimizer.fp32_groups_flat_partition
    else:
        masters = optimizer.single_partition_of_fp32_groups
    wrong = {str(master.dtype) for master in masters} - {"torch.float32"}
    if wrong:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"master weights are {', '.join(sorted(wrong))}, not fp32: DeepSpeed cannot be used",
        )


def assert_equal_replicas(engine: Engine, ranks: Ranks) -> None:
    """Check that all ranks have the same weights (ZeRO 1 and 2); collective.

    Compares one checksum over all live weights. Raises TrainerError (78), which names a rank, if
    they differ. This finds a collective that silently did nothing (DeepSpeed before 0.19.8 on CPU),
    or a device that computes wrongly, after the first step instead of at the end of a run.
    """
    if engine.stage == 3 or ranks.world == 1:
        return  # every element exists on one rank only
    mine = torch.tensor([checksum(engine)])
    gathered = [torch.zeros_like(mine) for _ in range(ranks.world)]
    dist.all_gather(gathered, mine, group=ranks.control)
    checksums = [int(value) for value in gathered]
    different = [rank for rank, value in enumerate(checksums) if value != checksums[0]]
    if different:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"after the first step the weights of rank {different[0]} differ from those of rank 0: "
            "a device or the network between the workers computes wrongly; check these nodes",
        )


@torch.no_grad()
def checksum(engine: Engine) -> int:
    """Return a checksum of 62 bits over the bits of all live weights and their positions."""
    total = 0
    for index, parameter in enumerate(engine.model.parameters()):
        bits = parameter.detach().flatten().view(_INTEGERS[parameter.element_size()])
        # The second sum changes if elements at even and odd positions are swapped.
        sums = (bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64))
        total = (total * 31 + (index + 1) * int(sums[0]) + 7 * int(sums[1])) % (1 << 62)
    return total

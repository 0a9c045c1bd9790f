"""The end of a job. A finished job's outcome never changes."""

from finetune_api.progress import Output
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.decision import Decision
from finetune_operator.plan.describe import Situation, describe
from finetune_operator.plan.observe import World


def succeeded(world: World, status: FineTuneJobStatus, output: Output) -> Decision:
    """The model folder is on storage and was loaded back."""
    status = status.replace(output=output, completion_time=world.now, next_attempt_time=None)
    situation = Situation("Succeeded", "Completed", f"the model is at {output.location}")
    return Decision(describe(world, status, situation), commits=True)


def failed(world: World, status: FineTuneJobStatus, reason: str, message: str) -> Decision:
    """Nothing more will be tried."""
    status = status.replace(completion_time=world.now, next_attempt_time=None)
    situation = Situation("Failed", reason[:64], message[:1024])
    return Decision(describe(world, status, situation), commits=True)

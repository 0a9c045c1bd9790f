"""The check that a model is computed exactly, made once in a preparation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.progress import ForwardPass
from finetune_trainer.common.errors import reading
from finetune_trainer.model import exactness

_log = logging.getLogger(__name__)


@dataclass
class ExactnessCheck:
    """Checks a model as soon as its config.json is there.

    That is before its weights are downloaded, or when the folder is read if nothing is downloaded.
    """

    model_name: str
    longest: int  # tokens of the longest possible document
    advance: Callable[[], None]
    router_aux_loss: float | None = None  # training.routerAuxLoss
    forward_pass: ForwardPass | None = None
    """What is computed exactly; None before the check."""

    def __call__(self, folder: Path) -> None:
        """Raise TrainerError (64) unless the model is computed exactly."""
        if self.forward_pass:
            return
        with reading(self.model_name):
            found = exactness.check_model(
                folder, self.model_name, self.longest, self.advance, self.router_aux_loss
            )
        if found.problem:
            _log.warning("%s is trained one document at a time: %s", self.model_name, found.problem)
        self.forward_pass = found.forward_pass

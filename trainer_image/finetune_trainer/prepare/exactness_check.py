"""The check that a model is computed exactly, made once in a preparation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.common.errors import reading
from finetune_trainer.model import exactness


@dataclass
class ExactnessCheck:
    """Checks a model as soon as its config.json is there.

    That is before its weights are downloaded, or when the folder is read if nothing is downloaded.
    """

    model_name: str
    longest: int  # tokens of the longest possible document
    advance: Callable[[], None]
    router_aux_loss: float | None = None  # training.routerAuxLoss
    _passed: bool = False

    def __call__(self, folder: Path) -> None:
        """Raise TrainerError (64) unless the model is computed exactly."""
        if self._passed:
            return
        with reading(self.model_name):
            exactness.check_model(
                folder, self.model_name, self.longest, self.advance, self.router_aux_loss
            )
        self._passed = True

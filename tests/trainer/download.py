"""Downloads in a separate process: `python -m tests.trainer.download model|data`.

huggingface_hub reads its environment when it is imported, as in a pod. Prints the result as one
line of JSON.
"""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.run import RunConfig
from tests.trainer import gang

_RESULT = "result: "
SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY")


@dataclass
class Download:
    """Runs this module as a process over a claim, with an environment of its choice."""

    claim: Path
    env: dict[str, str]
    output: list[str] = field(default_factory=list)
    uid: str = "uid-1"

    def model(self, source: str, **changes: Any) -> dict[str, Any]:
        """Download a model and return the result."""
        return self._run("model", self.config(model={"source": source, **changes}))

    def data(self, source: str, **changes: Any) -> dict[str, Any]:
        """Download a source of training data and return the result."""
        entry = {"source": source, **changes}
        return self._run("data", self.config(dataset={"train": [entry]}))

    def start(self, what: str, config: dict[str, Any]) -> "subprocess.Popen[str]":
        """Start the process and return without waiting for it."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AWS_"))}
        environment |= {"FINETUNE_RUN": json.dumps(config), **self.env}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.download", what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return a run configuration over the claim."""
        config = gang.make_job(self.claim).config | {"role": "prepare", "jobUid": self.uid}
        config = config | {"mounts": {"w": str(self.claim)}, "cache": "pvc://w/cache"} | changes
        RunConfig.model_validate(config)
        return config

    def end(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """Wait for the process and return its result."""
        text, _ = process.communicate(timeout=120)
        self.output.append(text)
        for name in SECRETS:
            assert not self.env.get(name) or self.env[name] not in text
        assert process.returncode == 0, text
        (line,) = (line for line in text.splitlines() if line.startswith(_RESULT))
        result: dict[str, Any] = json.loads(line.removeprefix(_RESULT))
        return result

    def _run(self, what: str, config: dict[str, Any]) -> dict[str, Any]:
        return self.end(self.start(what, config))


class Activity:
    """A Reporter that counts work and slows it down for tests that interrupt it."""

    def __init__(self) -> None:
        self.amount = 0

    def stage(self, *_: object) -> None:
        """Do nothing."""

    def training(self, **_: object) -> None:
        """Do nothing."""

    def advance(self, amount: int = 1) -> None:
        self.amount += amount
        time.sleep(float(os.environ.get("TEST_SLOWLY", "0")))


def main() -> None:
    from finetune_trainer.common.errors import TrainerError
    from finetune_trainer.run_dir.paths import Cache
    from finetune_trainer.sources import download
    from finetune_trainer.sources.download import Downloads
    from finetune_trainer.sources.local_files import download_data, download_model

    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    download.WAITS = (0.01,) * 3
    config, activity = RunConfig.model_validate_json(os.environ["FINETUNE_RUN"]), Activity()
    downloads = Downloads(Cache.of(config), config.job_uid, activity)
    result: dict[str, Any]
    try:
        if sys.argv[1] == "model":
            folder, revision = download_model(config.model, downloads, lambda _: None)
            result = {"folder": str(folder), "revision": revision}
        else:
            found = [download_data(source, downloads) for source in config.dataset.train]
            result = {"files": [[str(file.path), file.name] for part in found for file in part]}
        result["advanced"] = activity.amount
    except TrainerError as error:
        result = {"code": int(error.code), "reason": error.reason, "message": error.message}
    print(_RESULT + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

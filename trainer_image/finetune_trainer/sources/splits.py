"""The files of a split of a data set on the Hub, as `datasets` determines them from its card.

`datasets` only names the files. They are downloaded like all others (resumed, counted, into the
cache of the job) and read without a second copy in Arrow. No code of a repository is run, which
`datasets` no longer supports.
"""

import os
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.uri import HubPath
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import ALLOWED_KINDS, is_data
from finetune_trainer.sources.download import InterruptedTransferError, with_retries
from finetune_trainer.sources.hub import check_access, translate_errors
from finetune_trainer.sources.listing import input_missing


def files_of(address: HubPath, commit: str, split: str, scratch: Path) -> list[str]:
    """Return the names in the repository of the files of a split, in order.

    `scratch` is a folder for `datasets`. TrainerError 66 if the split does not exist, 64 if it has
    files that cannot be read here.
    """
    splits = with_retries(str(address), lambda: _splits(address, commit, scratch))
    if split not in splits:
        raise input_missing(
            f"{address}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}",
            "name one of them in split, or name files (hf://ORG/NAME/PATH)",
        )
    unsupported = [name for name in splits[split] if not is_data(name.rpartition("/")[2])]
    if unsupported:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{address}: its split {split!r} is made of {unsupported[0]}, which is not a supported "
            f"file of examples; {ALLOWED_KINDS}; name files (hf://ORG/NAME/PATH)",
        )
    return splits[split]


def _splits(address: HubPath, commit: str, scratch: Path) -> dict[str, list[str]]:
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    prefix = f"hf://datasets/{address.repository}@{commit}/"
    with translate_errors(str(address)):
        try:
            builder = datasets.load_dataset_builder(
                address.repository, revision=commit, cache_dir=str(scratch)
            )
        except (DatasetsError, EmptyDatasetError, ValueError, RuntimeError) as error:
            # The error does not contain the Hub's answer, so the Hub is asked again.
            check_access(address, "dataset")
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{address}: datasets finds no data in it ({str(error).splitlines()[0][:200]}); "
                "name files (hf://ORG/NAME/PATH)",
            ) from error
        except (ConnectionError, FileNotFoundError) as error:
            check_access(address, "dataset")
            raise InterruptedTransferError(
                "datasets could not read its card or its tree"
            ) from error
    return {
        str(name): [os.fspath(file).removeprefix(prefix) for file in files]
        for name, files in (builder.config.data_files or {}).items()
    }

"""A data set of the Hub by split: which files it is made of, as `datasets` reads its card.

Only the answer is taken from `datasets`: the files are downloaded like all others (resumed,
counted, into the cache that the job names) and read as they are, without a second copy in Arrow.
No code of a repository is run: `datasets` no longer does that.
"""

import os
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.uri import HubPath
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import is_data
from finetune_trainer.sources.hub import check_access, in_words
from finetune_trainer.sources.listing import missing
from finetune_trainer.sources.network import InterruptedTransferError, patiently


def files_of(address: HubPath, commit: str, split: str, scratch: Path) -> list[str]:
    """Names in the repository of the files of a split, in order.

    TrainerError 66 without that split, 64 where it is not made of data files that are read here.
    """
    splits = patiently(str(address), lambda: _splits(address, commit, scratch))
    if split not in splits:
        raise missing(
            f"{address}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}",
            "name one of them in split, or name files (hf://ORG/NAME/PATH)",
        )
    strange = [name for name in splits[split] if not is_data(name.rpartition("/")[2])]
    if strange:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{address}: its split {split!r} is made of {strange[0]}, which is no file of examples "
            "that is read here; name files (hf://ORG/NAME/PATH)",
        )
    return splits[split]


def _splits(address: HubPath, commit: str, scratch: Path) -> dict[str, list[str]]:
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    prefix = f"hf://datasets/{address.repository}@{commit}/"
    with in_words(str(address)):
        try:
            builder = datasets.load_dataset_builder(
                address.repository, revision=commit, cache_dir=str(scratch)
            )
        except (DatasetsError, EmptyDatasetError, ValueError, RuntimeError) as error:
            # It keeps nothing of what the Hub said, so the Hub is asked again.
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

"""From a source of the dataset to its local files, which are downloaded if necessary."""

from finetune_api.exit_codes import ExitCode
from finetune_api.spec import DataSource
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import SourceFile, kind_of
from finetune_trainer.sources.claim_files import files_on_claim
from finetune_trainer.sources.downloads import Downloads
from finetune_trainer.sources.remote_inputs import download_data


def source_files(
    source: DataSource, mounts: dict[str, str], downloads: Downloads
) -> list[SourceFile]:
    """Return the files of a source, sorted by name, all of one type.

    `mounts` maps the name of a claim to its path in this pod. TrainerError: 66 no file, 64 a link
    leads out of the claim, 65 several types of files, and the errors of a download.
    """
    if is_claim(source.source):
        found = files_on_claim(mounts, source.source.rstrip("/"))
    else:
        found = download_data(source, downloads)
    for _ in found:
        downloads.report.advance()
    kinds = sorted({kind_of(file.path) for file in found})
    if len(kinds) > 1:
        raise TrainerError(
            ExitCode.BAD_DATA,
            f"{source.source}: files of several types ({', '.join(kinds)}); a source must have one "
            "type: narrow it with a glob, and add a source for each other type",
        )
    return found

"""One rank of a gang: `python -m finetune_trainer.rank EPOCH`, started by the supervisor."""

from finetune_trainer.common import garbage_collection


def main() -> None:
    """Train as one rank of the gang. Ends the process instead of returning."""
    garbage_collection.hold()  # before the libraries are imported
    from finetune_trainer.training import attempt

    attempt.main()


if __name__ == "__main__":
    main()

"""One rank of the gang: `python -m finetune_trainer.rank EPOCH`, started by the supervisor."""

from finetune_trainer import garbage


def main() -> None:
    """Never returns."""
    garbage.hold()  # before the libraries are imported
    from finetune_trainer import attempt

    attempt.main()


if __name__ == "__main__":
    main()

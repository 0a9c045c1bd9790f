"""The trainer image: supervisor, ranks, data, checkpoints, export.

`python -m finetune_trainer` is the supervisor; it never imports torch and is up in well under a
second. Everything that computes runs in child processes.
"""

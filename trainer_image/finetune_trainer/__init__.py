"""The trainer: everything that runs in the pods of a job.

`python -m finetune_trainer` is the supervisor, process 1 of every pod. It never imports torch and
starts in well under a second. All computation happens in its child processes (`child`, `rank`).
The packages form layers; pyproject.toml lists them and checks that imports only point downwards.
"""

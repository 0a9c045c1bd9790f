"""Checkpoints: named fragments of the training state, and a manifest that is written last.

`checkpointer` is what the training loop uses. It resumes through `resume`, saves through `saver`
(a snapshot of `fragments`, then `write`), and deletes through `retention` and `store`. See
docs/design/checkpoints.md.

Imports `common`, `run_dir`, `data` and `model`.
"""

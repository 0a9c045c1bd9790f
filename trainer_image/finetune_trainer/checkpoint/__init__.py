"""Checkpoints: named fragments of the training state, and a manifest that is written last.

`checkpointer` is what the training loop uses. It resumes through `choose` and `load`, saves through
`saver` (`snapshot`, then `write`), and deletes through `retention` and `store`. See
docs/design/checkpoints.md.

Imports `common`, `run_dir`, `data` and `model`.
"""

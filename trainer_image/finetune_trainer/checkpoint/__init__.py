"""Checkpoints as named fragments with a manifest written last. See docs/checkpoints.md.

Imports `common`, `run_dir`, `data` and `model`.
"""

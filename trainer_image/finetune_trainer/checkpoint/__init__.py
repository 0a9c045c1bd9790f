"""Checkpoints as named fragments with a manifest written last. See docs/checkpoints.md."""

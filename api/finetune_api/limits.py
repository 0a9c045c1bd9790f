"""Numbers that the operator and the trainer must agree on."""

CHECKPOINT_INTERVAL = 900
"""Seconds between checkpoints if a job sets neither intervalSeconds nor intervalSteps."""

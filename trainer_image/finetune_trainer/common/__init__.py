"""What every part of the trainer uses: errors, progress reporting, environment, machine, signals.

Imports nothing else of this package and no torch.
"""

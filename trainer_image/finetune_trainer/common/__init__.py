"""What all parts of the trainer use.

This package holds errors, reporting to the supervisor, the pod's environment, the machine, signals,
the division of the grace period, and control of garbage collection. Imports no other package of the
trainer and no torch.
"""

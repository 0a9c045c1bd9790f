"""The operator: watches FineTuneJobs, decides what to do, and does it."""

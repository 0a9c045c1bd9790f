"""`kubectl finetune`, a plugin of kubectl that shows FineTuneJobs and prints their logs."""

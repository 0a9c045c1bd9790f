"""The supervisor, process 1 of every pod: child processes, watchdog, report and result.

Imports `run_dir` and `common`. Never imports torch, so that it starts in a fraction of a second.
"""

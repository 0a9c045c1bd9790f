"""The supervisor, process 1 of every pod: child processes, watchdog, report and result.

Imports `common` and `run_dir`. Never imports torch, so that it starts in a fraction of a second.
"""

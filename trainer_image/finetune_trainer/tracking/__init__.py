"""The run log on storage and the experiment trackers that it feeds.

Imports `common` and `run_dir`.
"""

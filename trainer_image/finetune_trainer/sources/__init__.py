"""From the address of a model or of data to local files: claims, the Hub, object stores.

Imports `common`, `run_dir` and `data`. Only the prepare pod downloads.
"""

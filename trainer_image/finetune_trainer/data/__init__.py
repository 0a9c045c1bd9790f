"""From source files to packed, masked rows on disk, and their order in training.

Imports `common` and `run_dir`.
"""

"""From the address of a model or of data to local files: claims, the Hub, object stores.

Imports `common`, `run_dir` and `data`. Only the prepare pod downloads. `local_files` gives the
files of a source: those on a claim, or a local copy of what the Hub (`hub`, `splits`) or a bucket
(`objects`) has (`listing`), downloaded into the cache (`download`).
"""

"""From the address of a model or of data to local files: claims, the Hub, object stores.

Imports `common`, `run_dir` and `data`. Only the prepare pod downloads. `source_files` gives the
files of a source: those on a claim (`claim_files`), or a local copy (`remote_inputs`) of what the
Hub (`hub`, `splits`) or a bucket (`objects`) has (`listing`), downloaded (`download`, `network`)
into the cache (`downloads`).
"""

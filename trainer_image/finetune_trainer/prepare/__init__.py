"""The work of the prepare pod: check every input and build the prepared data.

Imports everything below it; `training` and `export` do not import it. `preparation` runs the steps:
it checks storage (`separation`, `storage_checks`), finds the inputs and their digests (`inputs`),
and builds the prepared folder.
"""

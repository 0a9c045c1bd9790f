"""The work of the prepare pod: check every input and build the prepared data.

Imports everything below it; `training` and `export` do not import it. `preparation` runs the steps:
`storage_checks`, `inputs`, `digests` and `prepared_folder`.
"""

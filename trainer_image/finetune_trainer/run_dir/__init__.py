"""The files of a run on its storage: layout, atomic writes, ownership, fence and records.

Imports `common` only. `tensor_file` needs torch; everything else here is imported by the supervisor
too and must not.
"""

"""The files of a run on its storage: layout, atomic writes, ownership, fence and records.

Imports `common` only. `tensor_file` needs torch. The supervisor imports the other modules, which
therefore must not import torch.
"""

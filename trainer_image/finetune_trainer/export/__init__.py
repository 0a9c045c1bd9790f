"""The exported model: a Hugging Face folder made from a checkpoint, loaded back and compared.

Imports `checkpoint`, `tracking`, `model`, `data`, `run_dir` and `common`. Needs no process group,
no device and no DeepSpeed.
"""

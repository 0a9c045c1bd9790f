"""The model in training: loading, attention, loss head, optimizer and the DeepSpeed engine.

Imports `common`, `run_dir` and `data`. DeepSpeed is imported by `fast_imports` only.
"""

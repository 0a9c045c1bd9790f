"""The log of steps on storage and the experiment trackers (TensorBoard, Weights & Biases, MLflow).

Imports `run_dir` and `common`.
"""

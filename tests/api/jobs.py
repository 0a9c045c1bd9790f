"""Manifests: the smallest one, and one with every field that does not exclude another one."""

from typing import Any

from finetune_api.base import Object

# Addresses that are invalid for inputs as well.
BAD_SOURCES = (
    "x",
    "w/x",
    "/data/x",
    "az://bucket/x",
    "hf://",
    "hf://model",
    "hf:///org/model",
    "hf://org/..",
    "hf://datasets/org/data",
    "s3://bucket",
    "s3://bucket/",
    "gs://bucket/./",
    "gs:///x",
    "s3://bucket/../x",
    "pvc:///x",
    "pvc://w",
    "pvc://w/",
    "pvc://w//",
    "pvc://w/.",
    "pvc://w/./",
    "pvc://w//./.",
    "pvc://w/../x",
    "pvc://w/a/..",
)
BAD_URIS = (*BAD_SOURCES, "hf://org/model", "s3://bucket/x", "gs://bucket/x")
SOURCES = {
    "pvc://w/a": "pvc://w/a",
    "hf://org/model": "hf://org/model",
    "hf://Org-1/m.o_d-el/sub//folder/": "hf://Org-1/m.o_d-el/sub/folder",
    "s3://my.bucket/a/b.jsonl": "s3://my.bucket/a/b.jsonl",
    "gs://bucket/a/*.parquet": "gs://bucket/a/*.parquet",
}


def make_job(name: str = "a", **spec: Any) -> Object:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "pvc://w/models/base"},
            "dataset": {"train": [{"source": "pvc://w/data/train.jsonl"}]},
            "checkpoints": {"storage": "pvc://w/runs/a"},
            **spec,
        },
    }


COLUMNS = {
    "messages": "chat",
    "role": "from",
    "content": "value",
    "tools": "functions",
    "prompt": "question",
    "completion": "answer",
    "instruction": "task",
    "input": "given",
    "output": "reply",
    "text": "body",
}


def entry(shape: str) -> Object:
    """Return a data source with every field."""
    return {
        "source": "hf://org/data",
        "split": "test",
        "revision": "v2.0",
        "format": shape,
        "credentialsSecretRef": {"name": "hf-token"},
    }


def full_job(name: str = "a") -> Object:
    return make_job(
        name,
        model={
            "source": "hf://org/model",
            "revision": "v1.0",
            "credentialsSecretRef": {"name": "hf-token"},
        },
        dataset={
            "train": [entry("Messages") | {"columns": COLUMNS, "weight": 0.75}],
            "validation": [entry("PromptCompletion") | {"columns": {"prompt": "question"}}],
            "lossOn": "LastAssistant",
            "chatTemplate": {"path": "pvc://w/template.jinja"},
            "overlong": "Truncate",
        },
        training={
            "objective": "ContinuedPretraining",
            "maxSteps": 100,
            "globalBatchSize": 64,
            "sequenceLength": 2048,
            "packing": False,
            "learningRate": 1.5e-5,
            "schedule": "Linear",
            "minLearningRateRatio": 0.2,
            "warmupSteps": 5,
            "optimizer": {
                "beta1": 0.8,
                "beta2": 0.95,
                "epsilon": 1.0e-6,
                "weightDecay": 0.1,
                "momentPrecision": "BF16",
            },
            "maxGradNorm": 0.5,
            "precision": "FP32",
            "seed": 7,
        },
        deepspeed={
            "zeroStage": 3,
            "microBatchSize": 2,
            "activationCheckpointing": "Always",
            "offload": "OptimizerAndParameters",
        },
        workers={
            "replicas": 4,
            "devicesPerWorker": 8,
            "deviceResource": "amd.com/gpu",
            "image": "registry.example/trainer:1",
            "template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "nodeSelector": {"pool": "gpu"},
                    "containers": [
                        {"name": "side", "image": "x", "command": ["sleep"], "args": ["1"]}
                        | {"restartPolicyRules": [{"action": "Restart"}]},
                        {"name": "trainer", "resources": {"limits": {"memory": "64Gi"}}},
                    ],
                },
            },
        },
        checkpoints={
            "storage": "pvc://w/runs/a",
            "intervalSeconds": 600,
            "intervalSteps": 50,
            "keepLast": 3,
            "onExisting": "Resume",
        },
        cache="pvc://cache/shared",
        output={"weights": "Best"},
        evaluation={"intervalSteps": 25, "earlyStopping": {"patience": 3, "minDelta": 0.01}},
        runPolicy={
            "maxRestarts": 5,
            "activeDeadlineSeconds": 86400,
            "startDeadlineSeconds": 7200,
            "gangStartTimeoutSeconds": 300,
            "progressDeadlineSeconds": 900,
            "terminationGracePeriodSeconds": 120,
            "ttlSecondsAfterFinished": 3600,
            "cleanPodPolicy": "All",
        },
        tracking=[
            {"type": "MLflow", "project": "support", "secretRef": {"name": "mlflow.keys"}},
            {"type": "TensorBoard"},
        ],
        prepare={
            "template": {
                "metadata": {"annotations": {"note": "a"}},
                "spec": {
                    "nodeSelector": {"pool": "cpu"},
                    "containers": [
                        {"name": "side", "image": "x", "command": ["sleep"], "args": ["1"]}
                        | {"restartPolicyRules": [{"action": "Restart"}]},
                        {"name": "trainer", "resources": {"limits": {"cpu": "8"}}},
                    ],
                },
            },
        },
        scheduling={"priorityClassName": "batch", "workerAntiAffinity": "Required"},
        suspend=True,
    )

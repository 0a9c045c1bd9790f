"""Manifests: the smallest one, and one with every field that can stand beside the others."""

from typing import Any

Object = dict[str, Any]
BAD_URIS = (
    "x",
    "w/x",
    "/data/x",
    "hf://org/model",
    "s3://bucket/x",
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


def full_job(name: str = "a") -> Object:
    return make_job(
        name,
        dataset={
            "train": [
                {
                    "source": "pvc://w/data/train.jsonl",
                    "format": "Messages",
                    "columns": {
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
                    },
                    "weight": 0.75,
                },
            ],
            "validation": [
                {
                    "source": "pvc://w/data/v.json",
                    "format": "PromptCompletion",
                    "columns": {"prompt": "question"},
                },
            ],
            "lossOn": "LastAssistant",
            "chatTemplate": {"path": "pvc://w/template.jinja"},
            "overlong": "Truncate",
        },
        training={
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
            },
            "maxGradNorm": 0.5,
            "precision": "FP32",
            "seed": 7,
        },
        deepspeed={"zeroStage": 3, "microBatchSize": 2},
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
                        {"name": "side", "image": "x", "command": ["sleep"], "args": ["1"]},
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
        },
        cache="pvc://cache/shared",
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
        scheduling={"priorityClassName": "batch"},
        suspend=True,
    )

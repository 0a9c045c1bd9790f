"""A job whose model and data are on a hub, from the manifest to the finished model."""

import json
from pathlib import Path

import pytest

from finetune_local.cluster import Cluster
from tests.installed import Operator, finished, pods, status, wait_for
from tests.trainer import hub

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "hf_the-secret-token"


def secret(name: str, values: dict[str, str]) -> str:
    return json.dumps(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
    )


def test_a_private_model_and_data_are_fetched_once_the_secret_exists(
    cluster: Cluster, workspace: Path, operator: Operator, submit
) -> None:
    ref = {"credentialsSecretRef": {"name": "hf-token"}}
    with hub.serve() as served:
        model, chats = served.model("org/tiny"), served.dataset("org/chats")
        model.token = chats.token = TOKEN
        commit = model.commit(workspace / "model")
        chats.commit(workspace / "data")
        submit(
            "from-hub",
            model={"source": "hf://org/tiny"} | ref,
            dataset={
                "train": [{"source": "hf://org/chats/train.jsonl"} | ref],
                "validation": [{"source": "hf://org/chats", "split": "validation"} | ref],
            },
            training={"maxSteps": 4, "globalBatchSize": 8, "sequenceLength": 128},
            runPolicy={"cleanPodPolicy": "None"},
        )
        wait_for(
            "the status to name the missing Secret",
            lambda: status(cluster, "from-hub").get("reason") == "CreateContainerConfigError",
        )
        assert "hf-token" in status(cluster, "from-hub")["message"]
        values = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": served.url}
        cluster.kubectl("create", "-f", "-", stdin=secret("hf-token", values))
        ended = finished(cluster, "from-hub")
        assert ended["phase"] == "Succeeded", ended
        assert ended["resolved"]["modelRevision"] == commit
        assert (workspace / "runs/from-hub/cache/models" / commit).is_dir()
    for pod in pods(cluster, "from-hub"):
        name = pod["metadata"]["name"]
        has_secret = "envFrom" in pod["spec"]["containers"][0]
        assert has_secret == (pod["metadata"]["labels"]["finetune.dev/role"] == "prepare"), name
        assert TOKEN not in cluster.kubectl("logs", name)
    assert TOKEN not in json.dumps(ended)
    assert TOKEN not in operator.log

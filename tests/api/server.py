"""Requests to a test cluster's API server, one connection, as administrator."""

import http.client
import json
import ssl
from urllib.parse import urlsplit

from finetune_api.base import Object
from finetune_local.cluster import Cluster

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"


class Server:
    """Returns (HTTP status, answer)."""

    def __init__(self, cluster: Cluster) -> None:
        config = json.loads(cluster.kubeconfig.read_text())
        place, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=place["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        url = urlsplit(place["server"])
        self._connection = http.client.HTTPSConnection(
            url.hostname or "", url.port, context=context, timeout=30
        )

    def close(self) -> None:
        self._connection.close()

    def request(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> tuple[int, Object]:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": kind})
        response = self._connection.getresponse()
        answer: Object = json.loads(response.read())
        return response.status, answer

    def patch(self, path: str, body: Object) -> tuple[int, Object]:
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def dry_run(self, job: Object) -> tuple[int, Object]:
        return self.request("POST", f"{JOBS}?dryRun=All&fieldValidation=Strict", job)

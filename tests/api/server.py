"""A synchronous view of a test cluster's API server, as administrator."""

import asyncio
from urllib.parse import parse_qsl

from pydantic_core import from_json

from finetune_api.base import Object
from finetune_client.api import JSON, MERGE_PATCH, Api
from finetune_client.configuration import load_configuration
from finetune_client.errors import ApiError
from finetune_local.cluster import Cluster

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"


class Server:
    """Requests that return the HTTP status and the object, or the Status of a refusal."""

    def __init__(self, cluster: Cluster) -> None:
        self._runner = asyncio.Runner()
        self._api = self._runner.run(self._open(cluster))

    async def _open(self, cluster: Cluster) -> Api:
        return Api(load_configuration(cluster.kubeconfig), timeout=30)

    def close(self) -> None:
        self._runner.run(self._api.close())
        self._runner.close()

    def request(
        self, method: str, path: str, body: Object | None = None, kind: str = JSON
    ) -> tuple[int, Object]:
        path, _, query = path.partition("?")
        sent = self._api.request(method, path, dict(parse_qsl(query)), body, kind)
        try:
            answer = self._runner.run(sent)
        except ApiError as error:
            return error.code, {"message": error.message, "reason": error.reason}
        return 201 if method == "POST" else 200, from_json(answer)

    def patch(self, path: str, body: Object) -> tuple[int, Object]:
        return self.request("PATCH", path, body, MERGE_PATCH)

    def dry_run(self, job: Object) -> tuple[int, Object]:
        return self.request("POST", f"{JOBS}?dryRun=All&fieldValidation=Strict", job)

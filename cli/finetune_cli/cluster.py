"""The cluster as this command needs it: jobs, pods, events, logs; every error in plain words."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.rest import ApiException

from finetune_api import names
from finetune_api.base import API_GROUP, VERSION, Object
from finetune_cli.errors import (
    AwayError,
    CliError,
    ForbiddenError,
    MissingError,
    NoSuchJobError,
)
from finetune_cli.kubeconfig import Place, load

_TIMEOUT = (5, 15)  # s: connect, read


class Cluster:
    """A namespace of a cluster."""

    def __init__(self, place: Place) -> None:
        configuration, self.namespace = load(place)
        self.server: str = configuration.host
        api = client.ApiClient(configuration)
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)

    def job(self, name: str) -> Object:
        """A FineTuneJob; NoSuchJobError says which jobs there are."""
        try:
            job: Object = self._ask(
                lambda: self._custom.get_namespaced_custom_object(
                    API_GROUP,
                    VERSION,
                    self.namespace,
                    names.PLURAL,
                    name,
                    _request_timeout=_TIMEOUT,
                ),
                f"get finetunejob {name}",
            )
        except MissingError:
            raise NoSuchJobError(self._no_such_job(name)) from None
        if not isinstance(job, dict) or "metadata" not in job:
            raise CliError(f"{self.server} does not answer as a Kubernetes API server")
        return job

    def _no_such_job(self, name: str) -> str:
        try:
            listed = self._ask(
                lambda: self._custom.list_namespaced_custom_object(
                    API_GROUP, VERSION, self.namespace, names.PLURAL, _request_timeout=_TIMEOUT
                ),
                "list finetunejobs",
            )
        except MissingError:
            return (
                f"{self.server} does not know FineTuneJobs; is finetune-operator installed there?"
            )
        except CliError:
            return f"no FineTuneJob {name!r} in namespace {self.namespace}"
        found = [item["metadata"]["name"] for item in listed["items"]]
        there = f"there are {', '.join(sorted(found)[:5])}" if found else "there is none"
        return f"no FineTuneJob {name!r} in namespace {self.namespace}; {there}"

    def pods(self, job_uid: str) -> list[Object]:
        """Pods of a job."""
        selector = f"{names.LABEL_JOB_UID}={job_uid}"
        return self._items(self._core.list_namespaced_pod, "list pods", label_selector=selector)

    def pods_named(self, name: str) -> list[Object]:
        """The pod of that name, if it exists."""
        selector = f"metadata.name={name}"
        return self._items(self._core.list_namespaced_pod, "list pods", field_selector=selector)

    def events(self, job_uid: str) -> list[Object]:
        """Events of a job; ForbiddenError when only those are not permitted."""
        selector = f"involvedObject.uid={job_uid}"
        return self._items(self._core.list_namespaced_event, "list events", field_selector=selector)

    def log(self, pod: str, **options: Any) -> Iterator[bytes]:
        """Chunks of the trainer container's log, ending when the stream ends."""
        response = self._ask(
            lambda: self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=names.CONTAINER,
                _preload_content=False,
                _request_timeout=(5, 86_400),  # a quiet trainer may say nothing for long
                **options,
            ),
            f"read the log of pod {pod}",
        )
        try:
            yield from response.stream(4096, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return  # a cut stream; the caller sees whether the container still runs
        finally:
            response.release_conn()

    def _items(self, method: Callable[..., Any], what: str, **options: str) -> list[Object]:
        answer = self._ask(
            lambda: method(
                self.namespace, _preload_content=False, _request_timeout=_TIMEOUT, **options
            ),
            what,
        )
        items: list[Object] = json.loads(answer.data)["items"]
        return items

    def _ask(self, request: Callable[[], Any], what: str) -> Any:
        try:
            return request()
        except ApiException as error:
            raise self._translate(error, what) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            text = f"the cluster at {self.server} does not answer ({_short(error)})"
            raise AwayError(text) from None

    def _translate(self, error: ApiException, what: str) -> CliError:
        try:
            body = error.body.decode() if isinstance(error.body, bytes) else error.body
            message = json.loads(body or "")["message"]
        except (ValueError, KeyError, TypeError):
            message = str(error.reason)
        if error.status == 401:
            return CliError(
                f"{self.server} does not accept these credentials; log in again, or choose "
                "another --context"
            )
        if error.status == 403:
            return ForbiddenError(f"not permitted in namespace {self.namespace}: {message}")
        if error.status == 404:
            return MissingError(f"{what}: {message}")
        if error.status in (429, 500, 502, 503, 504):
            return AwayError(f"the cluster at {self.server} is busy: {message}")
        return CliError(f"{what}: {message}")


def _short(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason).split(">: ")[-1].split(": ", 1)[-1][:200]

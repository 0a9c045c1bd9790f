"""The requests of the command line: jobs, pods, events and logs, with errors for people."""

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
    """One namespace of a cluster."""

    def __init__(self, place: Place) -> None:
        configuration, self.namespace = load(place)
        self.server: str = configuration.host
        api = client.ApiClient(configuration)
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)

    def job(self, name: str) -> Object:
        """Return a FineTuneJob; NoSuchJobError lists the jobs that exist."""
        try:
            job: Object = self._request(
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
            raise CliError(f"{self.server} is not a Kubernetes API server")
        return job

    def _no_such_job(self, name: str) -> str:
        try:
            listed = self._request(
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
        existing = f"there are {', '.join(sorted(found)[:5])}" if found else "it has no jobs"
        return f"no FineTuneJob {name!r} in namespace {self.namespace}; {existing}"

    def pods(self, job_uid: str) -> list[Object]:
        """Return the pods of a job."""
        selector = f"{names.LABEL_JOB_UID}={job_uid}"
        return self._items(self._core.list_namespaced_pod, "list pods", label_selector=selector)

    def pods_named(self, name: str) -> list[Object]:
        """Return the pod of that name, if it exists."""
        selector = f"metadata.name={name}"
        return self._items(self._core.list_namespaced_pod, "list pods", field_selector=selector)

    def events(self, job_uid: str) -> list[Object]:
        """Return the events of a job; ForbiddenError if these credentials may not list events."""
        selector = f"involvedObject.uid={job_uid}"
        return self._items(self._core.list_namespaced_event, "list events", field_selector=selector)

    def log(self, pod: str, **options: Any) -> Iterator[bytes]:
        """Yield the log of the trainer container in chunks until the stream ends."""
        response = self._request(
            lambda: self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=names.CONTAINER,
                _preload_content=False,
                _request_timeout=(5, 86_400),  # A trainer can be silent for hours.
                **options,
            ),
            f"read the log of pod {pod}",
        )
        try:
            yield from response.stream(4096, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return  # The stream was cut. The caller checks whether the container still runs.
        finally:
            response.release_conn()

    def _items(self, method: Callable[..., Any], action: str, **options: str) -> list[Object]:
        response = self._request(
            lambda: method(
                self.namespace, _preload_content=False, _request_timeout=_TIMEOUT, **options
            ),
            action,
        )
        items: list[Object] = json.loads(response.data)["items"]
        return items

    def _request(self, send: Callable[[], Any], action: str) -> Any:
        try:
            return send()
        except ApiException as error:
            raise self._translate(error, action) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            text = f"the cluster at {self.server} does not answer ({_short(error)})"
            raise AwayError(text) from None

    def _translate(self, error: ApiException, action: str) -> CliError:
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
            return MissingError(f"{action}: {message}")
        if error.status in (429, 500, 502, 503, 504):
            return AwayError(f"the cluster at {self.server} is busy: {message}")
        return CliError(f"{action}: {message}")


def _short(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason).split(">: ")[-1].split(": ", 1)[-1][:200]

"""The watch on FineTuneJobs: kopf's `on.event`, and nothing else of kopf.

No create, update, timer, daemon or index handler: those patch annotations, force finalizers, and
an index over pods is quadratic at start-up (docs/adr/0002).
"""

import asyncio
from typing import Any

import kopf

from finetune_api.base import API_GROUP
from finetune_api.names import PLURAL
from finetune_operator.jobs import Jobs


async def run(
    jobs: Jobs, configuration: Any, namespaces: tuple[str, ...], ready: asyncio.Event
) -> None:
    """Feed the cache for ever."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True  # needs no right on CRDs and namespaces
        settings.watching.server_timeout = 300
        settings.networking.request_timeout = 10

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        settings = configuration.auth_settings().values()
        header = next((s["value"] for s in settings if s["in"] == "header"), None) or ""
        scheme, _space, token = header.partition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme=scheme if token else None,
            token=token or None,
        )

    @kopf.on.event(API_GROUP, "v1alpha1", PLURAL, registry=registry)
    def event(event: kopf.RawEvent, **_: Any) -> None:
        item = dict(event["object"])
        if event["type"] == "DELETED":
            metadata = item["metadata"]
            jobs.remove((metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            jobs.take(item)

    await kopf.operator(
        registry=registry,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
    )

"""Who we are to the API server: configuration, certificates and tokens.

They come from the `kubernetes` package: kubeconfig or the pod's service account, with tokens that
rotate.
"""

import os
import ssl
import time
from typing import Any

import aiohttp
from kubernetes import client, config

_BELIEVED = 10.0  # s
_TIMEOUT = 10.0  # s


def load_configuration() -> Any:
    """The pod's service account inside a cluster, else KUBECONFIG or ~/.kube/config."""
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        config.load_incluster_config()
    else:
        config.load_kube_config()
    return client.Configuration.get_default_copy()


def tls_context(configuration: Any) -> ssl.SSLContext:
    """Trusts the configuration's authority, and shows its certificate."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


class Credentials:
    """The header that says who we are.

    Asked for again and again, for tokens in pods rotate; not at every request, for it costs as much
    as the rest of a request does.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._known: dict[str, str] = {}
        self._until = 0.0

    def headers(self) -> dict[str, str]:
        """Empty when a client certificate is enough."""
        if time.monotonic() >= self._until:
            settings = self._configuration.auth_settings().values()
            self._known = {
                s["key"]: s["value"] for s in settings if s["in"] == "header" and s["value"]
            }
            self._until = time.monotonic() + _BELIEVED
        return self._known


def open_session(configuration: Any, *more: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
    """An aiohttp session with the configuration's certificates and credentials."""
    credentials = Credentials(configuration)

    async def identified(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers.update(credentials.headers())
        return await handler(request)

    return aiohttp.ClientSession(
        # No limit: the watches of many namespaces would take every slot from the requests.
        connector=aiohttp.TCPConnector(ssl=tls_context(configuration), limit=0),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=5),
        middlewares=(*more, identified),
    )

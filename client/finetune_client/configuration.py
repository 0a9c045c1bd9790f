"""Where the API server is and how to authenticate: kubeconfig or service account.

The `kubernetes` package reads both. Its Configuration is used as it is; this module converts it to
what aiohttp needs.
"""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config
from kubernetes.client.rest import should_bypass_proxies

from finetune_client.errors import CredentialsError

_log = logging.getLogger("finetune.client")
_FRESH = 10.0  # s after which the credentials are read again
_USABLE = 60.0  # s after which a request waits for the new ones; they are renewed 5 min early


class ConfigurationError(Exception):
    """The kubeconfig, the service account or the proxy settings cannot be used."""


def load_configuration(kubeconfig: Path | None = None) -> Any:
    """Return the `kubernetes` package's Configuration of a cluster.

    Without `kubeconfig`: the pod's service account inside a cluster, unless KUBECONFIG is set; else
    KUBECONFIG or ~/.kube/config. Credential plugins run here for the first time, so this blocks.
    Raises ConfigurationError.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is not None:
            config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        elif os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigurationError(str(error)) from error
    proxy_url(configuration)
    return configuration


def tls_context(configuration: Any) -> ssl.SSLContext:
    """Return a context that verifies the server and presents the client certificate, if any."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:  # insecure-skip-tls-verify
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def proxy_url(configuration: Any) -> str | None:
    """Return the proxy for the API server: the kubeconfig's proxy-url, else the environment's.

    NO_PROXY applies to both. Raises ConfigurationError if the proxy is not an HTTP proxy.
    """
    proxy: str | None = configuration.proxy
    if not proxy or should_bypass_proxies(configuration.host, configuration.no_proxy or ""):
        return None
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = f"{parts.scheme}://{parts.hostname}"  # without the password
        raise ConfigurationError(
            f"the proxy for the API server is {shown}; http:// and https:// are allowed"
        )
    return proxy


class Credentials:
    """The request headers that authenticate, kept current.

    Tokens of service accounts rotate on disk, and credential plugins are programs that may take
    seconds. Both are read in a thread every 10 s. Requests meanwhile use the headers read before,
    which stay valid because the `kubernetes` package renews tokens five minutes early.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._headers: dict[str, str] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def headers(self) -> Mapping[str, str]:
        """Return the headers; none if a client certificate is enough. Raises CredentialsError."""
        age = time.monotonic() - self._read_at
        if age < _FRESH:
            return self._headers
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        if age >= _USABLE:
            await asyncio.shield(self._reading)
            if self._error:
                raise CredentialsError(f"the credentials cannot be read: {self._error}")
        return self._headers

    async def _read(self) -> None:
        begin = time.monotonic()
        try:
            settings = await asyncio.to_thread(self._configuration.auth_settings)
        except Exception as error:
            _log.warning("the credentials cannot be read: %s", error)
            self._error = error
        else:
            self._error = None
            self._read_at = begin
            self._headers = {
                s["key"]: s["value"]
                for s in settings.values()
                if s["in"] == "header" and s["value"]
            }
        finally:
            self._reading = None

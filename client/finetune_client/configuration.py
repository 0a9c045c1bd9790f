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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes import client, config
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config import kube_config

from finetune_client.errors import CredentialsError

_log = logging.getLogger("finetune.client")
_FRESH = 10.0  # s after which the credentials are read again
_EARLY = timedelta(minutes=5)  # before their end, credentials of plugins are renewed
_USABLE = 60.0  # s after which a request waits for the new ones; they are renewed 5 min early


class ConfigurationError(Exception):
    """The kubeconfig, the service account or the proxy settings cannot be used."""


def load_configuration(kubeconfig: Path | None = None, *, strict: bool = True) -> Any:
    """Return the `kubernetes` package's Configuration of a cluster.

    Without `kubeconfig`: the pod's service account inside a cluster, unless KUBECONFIG is set; else
    KUBECONFIG or ~/.kube/config. Credential plugins run here for the first time, so this blocks.
    `strict` is whether certificates must follow RFC 5280 strictly. Raises ConfigurationError.
    """
    configuration = client.Configuration()
    configuration.strict_certificates = strict
    named = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG")
    try:
        if not named and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            _load_kubeconfig(named or kube_config.KUBE_CONFIG_DEFAULT_LOCATION, configuration)
    except config.ConfigException as error:
        raise ConfigurationError(str(error)) from error
    proxy_url(configuration)
    return configuration


def _load_kubeconfig(paths: str, configuration: Any) -> None:
    merged = kube_config.KubeConfigMerger(paths)
    if merged.config is None:
        raise config.ConfigException(f"{paths}: no configuration found")
    _Loader(
        merged.config, config_base_path=None, config_persister=merged.save_changes
    ).load_and_set(configuration)


class _Loader(kube_config.KubeConfigLoader):  # type: ignore[misc]
    """Reads credentials again, which the `kubernetes` package does for tokens of plugins only."""

    def _set_config(self, client_configuration: Any) -> None:
        super()._set_config(client_configuration)
        client_configuration.refresh_api_key_hook = self._refresh

    def _refresh(self, configuration: Any) -> None:
        expiry = self.__dict__.get("expiry")
        if expiry and expiry - _EARLY <= datetime.now(UTC):
            self._load_authentication()
        elif self._user and "tokenFile" in self._user and "token" not in self._user:
            self._load_user_token()
        self._set_config(configuration)

    def _load_user_token(self) -> bool | None:
        found: bool | None = super()._load_user_token()
        if found:
            token: str = self.__dict__["token"]
            self.token = token.strip()  # Files often end with a line break.
        return found


def tls_context(configuration: Any) -> ssl.SSLContext:
    """Return a context that verifies the server and presents the client certificate, if any."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Python 3.13 sets the flag by default, earlier versions do not.
    if getattr(configuration, "strict_certificates", True):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    else:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
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
    """What authenticates requests, kept current: headers, and certificates in a TLS context.

    Tokens of service accounts and certificates rotate on disk, and credential plugins are programs
    that may take seconds. All are read in a thread every 10 s. Requests meanwhile use what was read
    before, which stays valid because the `kubernetes` package renews credentials five minutes
    early. Connections with the context before are not used any more.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._headers: dict[str, str] = {}
        self._files = certificate_files(configuration)
        self.tls = tls_context(configuration)
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
            settings = await asyncio.to_thread(self._read_files)
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

    def _read_files(self) -> dict[str, Any]:
        configuration = self._configuration
        if configuration.refresh_api_key_hook and "BearerToken" not in configuration.api_key:
            configuration.refresh_api_key_hook(configuration)  # a plugin of certificates
        settings: dict[str, Any] = configuration.auth_settings()
        self._read_certificates()
        return settings

    def _read_certificates(self) -> None:
        """Make a new context if a certificate has changed; keep the old one if that fails.

        It fails for a moment while a certificate and its key are replaced one after the other.
        """
        try:
            files = certificate_files(self._configuration)
            if files != self._files:
                self.tls = tls_context(self._configuration)
                self._files = files
        except (OSError, ssl.SSLError) as error:
            _log.warning("the certificates cannot be read: %s", error)


def certificate_files(configuration: Any) -> list[bytes]:
    """Return the contents of the files that a TLS context is made of."""
    named = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    return [Path(name).read_bytes() for name in named if name]

"""Which cluster is meant: the kubeconfig, its context, the namespace."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes import client, config

from finetune_cli.errors import CliError

# What the library lets through when a file is no kubeconfig: a folder, no text, no YAML, a list,
# a number where a text belongs. It checks none of them itself.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError)


@dataclass(frozen=True)
class Place:
    """Which kubeconfig, context and namespace."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


def load(place: Place) -> tuple[client.Configuration, str]:
    """How to reach the API server, and the namespace; CliError names the file and what it is."""
    try:
        return _load(place)
    except config.ConfigException as error:
        text = f"no cluster is configured ({error}); set KUBECONFIG or give --kubeconfig"
        raise CliError(text) from None
    except _UNREADABLE as error:
        what = " ".join(str(error).split())
        raise CliError(
            f"{_file(place)} is no kubeconfig ({type(error).__name__}: {what}); "
            "set KUBECONFIG or give --kubeconfig"
        ) from None


def _load(place: Place) -> tuple[client.Configuration, str]:
    configuration = client.Configuration()
    config.load_kube_config(
        config_file=place.kubeconfig, context=place.context, client_configuration=configuration
    )
    contexts, active = config.list_kube_config_contexts(place.kubeconfig)
    if place.context:
        active = next(c for c in contexts if c["name"] == place.context)
    configuration.retries = 0
    return configuration, place.namespace or active["context"].get("namespace") or "default"


def _file(place: Place) -> str:
    default = Path.home() / ".kube" / "config"
    return place.kubeconfig or os.environ.get("KUBECONFIG") or str(default)

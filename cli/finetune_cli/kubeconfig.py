"""Which cluster is meant: the kubeconfig, its context, the namespace."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes import client, config
from kubernetes.config import kube_config

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
        raise CliError(
            f"no cluster is configured ({_line(error)}); "
            "set KUBECONFIG, or give --kubeconfig or --context"
        ) from None
    except _UNREADABLE as error:
        raise CliError(
            f"{_file(place)} is no kubeconfig ({type(error).__name__}: {_line(error)}); "
            "set KUBECONFIG or give --kubeconfig"
        ) from None


def _load(place: Place) -> tuple[client.Configuration, str]:
    configuration = client.Configuration()
    merged = kube_config.KubeConfigMerger(
        place.kubeconfig or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    )
    if merged.config is None:
        raise config.ConfigException("there is none")
    # Not through `list_kube_config_contexts`: that refuses a file without a current context.
    loader = kube_config.KubeConfigLoader(
        merged.config, active_context=place.context, config_persister=merged.save_changes
    )
    loader.load_and_set(configuration)
    configuration.retries = 0
    active = loader.current_context["context"]
    return configuration, place.namespace or active.get("namespace") or "default"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _file(place: Place) -> str:
    default = Path.home() / ".kube" / "config"
    return place.kubeconfig or os.environ.get("KUBECONFIG") or str(default)

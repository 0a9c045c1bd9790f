"""The choice of the cluster: kubeconfig, context and namespace."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes import client, config
from kubernetes.config import kube_config

from finetune_cli.errors import CliError

# What the library raises for a file that is not a kubeconfig: a folder, binary data, invalid YAML,
# a list, or a number in the place of a string. It checks none of these itself.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError)


@dataclass(frozen=True)
class Place:
    """A kubeconfig, a context and a namespace; None selects the default."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


def load(place: Place) -> tuple[client.Configuration, str]:
    """Return the client configuration and the namespace; CliError names the invalid file."""
    try:
        return _load(place)
    except config.ConfigException as error:
        raise CliError(
            f"no cluster is configured ({_line(error)}); "
            "set KUBECONFIG, or use --kubeconfig or --context"
        ) from None
    except _UNREADABLE as error:
        raise CliError(
            f"{_file(place)} is not a valid kubeconfig ({type(error).__name__}: {_line(error)}); "
            "set KUBECONFIG or use --kubeconfig"
        ) from None


def _load(place: Place) -> tuple[client.Configuration, str]:
    configuration = client.Configuration()
    merged = kube_config.KubeConfigMerger(
        place.kubeconfig or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    )
    if merged.config is None:
        raise config.ConfigException("no kubeconfig was found")
    # `list_kube_config_contexts` is not used, because it refuses a file without a current context.
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

"""Print the CustomResourceDefinition that the models define: `python -m hack.crd`.

Kubernetes requires a *structural* schema, which pydantic does not produce. References are inlined,
`anyOf: [..., null]` becomes an optional property, exclusive bounds become flags, every parent of a
default gets `default: {}` (the API server applies nested defaults only then), and
`additionalProperties: false` is removed.
"""

import re
import sys
from typing import Any

import yaml
from pydantic import BaseModel

from finetune_api.base import API_GROUP, VERSION
from finetune_api.names import KIND, PLURAL
from finetune_api.schema import Rule
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec.use import Change, Declared, declared
from finetune_api.status import FineTuneJobStatus

NAME_RULE = Rule(
    "oldSelf.hasValue() || self.metadata.name.size() <= 52 && "
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "must have at most 52 characters of a-z, 0-9 and '-', start with a letter and not end with "
    "'-', because a Service and pods are named after it",
    ".metadata.name",
    optional_old_self=True,
)


def _unchanged(change: Change) -> str:
    """Return the CEL expression that the fields which may change only then did not change."""
    fields = [field for field in declared(FineTuneJobSpec) if field.use.change is change]
    terms = [f"{_spec(f)} == {_spec(f, 'oldSelf')}" for f in fields if not f.optional]
    terms += [
        f"has({_spec(f)}) == has({_spec(f, 'oldSelf')}) && (!has({_spec(f)}) || "
        f"{_spec(f)} == {_spec(f, 'oldSelf')})"
        for f in fields
        if f.optional
    ]
    return " && ".join(terms)


def _spec(field: Declared, owner: str = "self") -> str:
    return f"{owner}.spec.{field.wire_path}"


def _names(change: Change) -> str:
    """Return the names of these fields as a list in a sentence."""
    *names, last = [f.wire_path for f in declared(FineTuneJobSpec) if f.use.change is change]
    return f"{', '.join(names)} and {last}"


_COMMITTED = "has(oldSelf.status) && has(oldSelf.status.attempt)"
FROZEN_RULE = Rule(
    f"!({_COMMITTED}) || {_unchanged(Change.NEVER)}",
    f"{_names(Change.NEVER)} are frozen once the first attempt was committed; create a new job",
    ".spec",
)
# The update that ends the suspension may change them as well: queueing systems do so.
SUSPENDED_RULE = Rule(
    f"!({_COMMITTED}) || {_unchanged(Change.WHILE_SUSPENDED)} || "
    "oldSelf.spec.suspend && has(oldSelf.status.conditions) && "
    "oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True')",
    f"{_names(Change.WHILE_SUSPENDED)} change only while condition Suspended is True: set suspend "
    "to true and wait until every pod is gone",
    ".spec.workers",
)

_LONG = 72  # characters of a string from which on it is written as a block
COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", ".status.reason", 0),
    ("Stage", "string", ".status.stage", 0),
    ("Progress", "string", ".status.display.progress", 0),
    ("Step", "string", ".status.display.step", 0),
    ("Loss", "string", ".status.display.loss", 0),
    ("ETA", "string", ".status.display.eta", 0),
    ("GPU-Hours", "string", ".status.usage.gpuHours", 0),
    ("Restarts", "integer", ".status.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Val", "string", ".status.display.validation", 1),
    ("Restarted", "string", ".status.display.restarted", 1),
    ("Tokens/s", "integer", ".status.progress.tokensPerSecond", 1),
    ("MFU", "number", ".status.progress.mfu", 1),
    ("Checkpoint", "string", ".status.display.checkpoint", 1),
    ("Workers", "string", ".status.display.workers", 1),
    ("Message", "string", ".status.message", 1),
]


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of a pydantic model."""
    source = model.model_json_schema(by_alias=True, mode="validation")
    definitions = source.pop("$defs", {})
    schema: dict[str, Any] = _walk(source, definitions)
    return schema


def _walk(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    node = _resolve(node, definitions)
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {
            k: v for k, v in node.items() if k not in ("title", "additionalProperties", "default")
        }
    result = {
        k: v
        for k, v in node.items()
        if k not in ("title", "additionalProperties", "properties", "items", "const", "default")
    }
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(result.get(flag), int | float):
            result[bound], result[flag] = result[flag], True
    if "description" in result:
        result["description"] = _one_line(result["description"])
    if "items" in node:
        result["items"] = _walk(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _walk(node["additionalProperties"], definitions)
    if "properties" in node:
        result["properties"] = {
            name: _walk(child, definitions) for name, child in node["properties"].items()
        }
    default = _default(node, result)
    if default is not None:
        result["default"] = default
    return result


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline a reference and unwrap `X | None`. Keywords beside them take precedence."""
    while True:
        if "$ref" in node:
            target = definitions[node["$ref"].rsplit("/", 1)[-1]]
            node = target | {k: v for k, v in node.items() if k != "$ref"}
        elif "anyOf" in node:
            options = [option for option in node["anyOf"] if option.get("type") != "null"]
            if len(options) != 1:
                raise ValueError(f"a union of types has no structural schema: {node}")
            beside = {k: v for k, v in node.items() if k != "anyOf"}
            node = options[0] | beside
        else:
            return node


def _default(node: dict[str, Any], result: dict[str, Any]) -> Any:
    default = node.get("default")
    if result.get("type") == "object" and "properties" in result:
        optional = not result.get("required")
        fills = any("default" in child for child in result["properties"].values())
        return {} if optional and fills else None
    return None if default in (None, []) else default


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition as a dict."""
    spec, status = structural(FineTuneJobSpec), structural(FineTuneJobStatus)
    for part in (spec, status):
        part.pop("default", None)
    spec["description"] = "spec is the desired fine-tuning of one model on one data set."
    status["description"] = "status is the observed state of the job. Only the operator writes it."
    _drop_defaults(status)
    schema = {
        "type": "object",
        "description": "FineTuneJob is a full fine-tuning of a language model: every weight is "
        "updated, on a gang of pods that resumes from verified checkpoints after preemptions and "
        "crashes.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # Declared so that the rule about the name can refer to it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [
            rule.to_dict() for rule in (NAME_RULE, FROZEN_RULE, SUSPENDED_RULE)
        ],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path}
        | ({"priority": priority} if priority else {})
        for name, kind, path, priority in COLUMNS
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["finetune"],
            },
            "versions": [version],
        },
    }


def _drop_defaults(node: dict[str, Any]) -> None:
    """Remove the defaults of the status, or the API server would write them itself."""
    node.pop("default", None)
    for child in node.get("properties", {}).values():
        _drop_defaults(child)
    if "items" in node:
        _drop_defaults(node["items"])


class _Dumper(yaml.SafeDumper):
    """A dumper that writes long strings as folded blocks, so that CEL rules need no quoting."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Repeat equal objects: some tools that read CRDs do not resolve aliases."""
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = ">" if len(text) > _LONG or "'" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)


def to_yaml(value: Any) -> str:
    """Return a value as block YAML in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def main() -> None:
    """Print the definition."""
    sys.stdout.write("# Generated by `make crds` from api/finetune_api; do not edit.\n")
    sys.stdout.write(to_yaml(definition()))


if __name__ == "__main__":
    main()

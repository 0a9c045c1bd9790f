"""The CustomResourceDefinition, generated from the models: `python -m finetune_api.crd`.

Kubernetes wants a *structural* schema, which no pydantic output is: references inlined, no
`anyOf: [.., null]` (absent means absent), numeric exclusive bounds as flags, `default: {}` on every
parent of a default (or nested defaults never apply), no `additionalProperties: false`.
"""

import json
import re
from typing import Any

from pydantic import BaseModel

from finetune_api.base import API_GROUP, VERSION
from finetune_api.names import KIND, PLURAL
from finetune_api.schema import Rule
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

NAME_RULE = Rule(
    "oldSelf.hasValue() || self.metadata.name.size() <= 52 && "
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "at most 52 characters of a-z, 0-9 and '-', starting with a letter and not ending with '-' "
    "(it names a Service and pods)",
    ".metadata.name",
    optional_old_self=True,
)


def _same(*paths: str, optional: tuple[str, ...] = ()) -> str:
    """CEL: these parts of the spec did not change."""
    terms = [f"self.spec.{p} == oldSelf.spec.{p}" for p in paths]
    terms += [
        f"has(self.spec.{p}) == has(oldSelf.spec.{p}) && (!has(self.spec.{p}) || "
        f"self.spec.{p} == oldSelf.spec.{p})"
        for p in optional
    ]
    return " && ".join(terms)


_COMMITTED = "has(oldSelf.status) && has(oldSelf.status.attempt)"
FROZEN_RULE = Rule(
    f"!({_COMMITTED}) || "
    + _same("model", "dataset", "training", "checkpoints.storage", optional=("cache",)),
    "model, dataset, training, cache and checkpoints.storage are frozen once the first attempt was "
    "committed; make a new job",
    ".spec",
)
# Also in the very update that ends the suspension, as queueing systems do it.
SUSPENDED_RULE = Rule(
    f"!({_COMMITTED}) || "
    + _same("workers", optional=("deepspeed", "scheduling"))
    + " || oldSelf.spec.suspend && has(oldSelf.status.conditions) && "
    "oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True')",
    "workers, deepspeed and scheduling change only while condition Suspended is True: set suspend "
    "to true and wait until every pod is gone",
    ".spec.workers",
)

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
    ("Tokens/s", "integer", ".status.progress.tokensPerSecond", 1),
    ("MFU", "number", ".status.progress.mfu", 1),
    ("Checkpoint", "string", ".status.display.checkpoint", 1),
    ("Workers", "string", ".status.display.workers", 1),
    ("Message", "string", ".status.message", 1),
]


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a pydantic model."""
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
    """Inline a reference and unwrap `X | None`; what stands beside them wins."""
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
    """The whole CustomResourceDefinition as a dict."""
    spec, status = structural(FineTuneJobSpec), structural(FineTuneJobStatus)
    for part in (spec, status):
        part.pop("default", None)
    _drop_defaults(status)
    schema = {
        "type": "object",
        "description": "A full fine-tune of a language model: every weight is updated, on a gang "
        "of pods that survives preemption and crashes from verified checkpoints.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            # Declared so that the name rule can point at it.
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
    """Status has no defaults: the API server would write what the operator never said."""
    node.pop("default", None)
    for child in node.get("properties", {}).values():
        _drop_defaults(child)
    if "items" in node:
        _drop_defaults(node["items"])


def to_yaml(value: Any, indent: int = 0) -> str:
    """Block YAML of plain JSON values; scalars are JSON, which is YAML.

    The package carries no YAML library: pydantic and the standard library are its only needs.
    """
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            name = key if re.fullmatch(r"[A-Za-z$][-\w.$/]*", key) else json.dumps(key)
            if isinstance(item, dict | list) and item:
                lines.append(f"{pad}{name}:\n{to_yaml(item, indent + isinstance(item, dict))}")
            else:
                lines.append(f"{pad}{name}: {_scalar(item)}")
        return "\n".join(lines)
    if isinstance(value, list) and value:
        return "\n".join(f"{pad}- {to_yaml(item, indent + 1).lstrip()}" for item in value)
    return f"{pad}{_scalar(value)}"


def _scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # YAML 1.1 readers take 1e-08 for a string: a float needs its dot.
    return re.sub(r"^(-?\d+)(e.*)$", r"\1.0\2", text) if isinstance(value, float) else text


def main() -> None:
    """Print the definition."""
    print("# Generated by `make crds` from api/finetune_api; do not edit.")
    print(to_yaml(definition()))


if __name__ == "__main__":
    main()

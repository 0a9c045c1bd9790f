"""Write the generated parts of the Helm chart: the CRD, the rules and the table of values.

`make crds` runs this script; tests/chart/test_generated.py fails if a file is out of date.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

TREE = Path(__file__).resolve().parent.parent
CHART = TREE / "charts" / "finetune-operator"
CRD = Path("crds") / "finetune.dev_finetunejobs.yaml"
ROLES = Path("operator") / "rbac" / "role.yaml"
_METADATA = "metadata:\n  name: finetunejobs.finetune.dev\n"
_CRD_METADATA = """\
  {{- $keep := dict "helm.sh/resource-policy" "keep" }}
  {{- include "finetune-operator.metadata" (dict "context" . "annotations" (ternary $keep dict \
.Values.crds.keep)) | nindent 2 }}
"""
_TABLE = re.compile(r"(?<=<!-- values: written by `make crds` -->\n).*?(?=<!-- end -->)", re.DOTALL)


def parts() -> dict[Path, str]:
    """Return the contents of each generated file of the chart."""
    readme = CHART / "README.md"
    table = "\n| value | default | what |\n|---|---|---|\n" + "".join(_rows()) + "\n"
    return {
        CHART / "templates" / "crd.yaml": _crd(),
        CHART / "templates" / "_rules.tpl": _rules(),
        readme: _once(_TABLE, lambda _: table, readme.read_text()),
    }


def _crd() -> str:
    """Return the definition as a template that respects `crds.enabled` and `crds.keep`."""
    text = (TREE / CRD).read_text().partition("\n")[2]  # without its first comment
    text = _once(re.compile(re.escape(_METADATA)), lambda found: found[0] + _CRD_METADATA, text)
    return f"{_head(CRD)}{{{{- if .Values.crds.enabled }}}}\n{text}{{{{- end }}}}\n"


def _rules() -> str:
    """Return the rules of the ClusterRole and of the Role for the Lease, from operator/rbac."""
    rules = {}
    for document in (TREE / ROLES).read_text().split("\n---\n"):
        item = yaml.safe_load(document)
        if "rules" in item:
            rules[item["kind"]] = document.partition("\nrules:\n")[2].rstrip("\n")
    ours = '{{ include "finetune-operator.fullname" . }}'
    named = re.compile(r"(?<=resourceNames: \[)finetune-operator(?=\])")
    lease = _once(named, lambda _: ours, rules["Role"])
    return (
        f"{_head(ROLES)}"
        f'{{{{- define "finetune-operator.rules" }}}}\n{rules["ClusterRole"]}\n{{{{- end }}}}\n'
        f'{{{{- define "finetune-operator.leaseRules" }}}}\n{lease}\n{{{{- end }}}}\n'
    )


def _head(source: Path) -> str:
    return f"{{{{- /* Written by `make crds` from {source}; do not edit. */ -}}}}\n"


def _rows() -> Iterator[str]:
    """Return a row for each value, from the comments of values.yaml."""
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    for path, key, value in _values(yaml.compose(text), lines):
        default = yaml.safe_load(yaml.serialize(value))
        shown = yaml.safe_dump(default, default_flow_style=True, width=1000, sort_keys=False)
        shown = shown.removesuffix("...\n").strip() if default != "" else '""'
        yield f"| `{path}` | `{shown}` | {_comment(lines, key.start_mark.line)} |\n"


def _values(
    mapping: yaml.Node | None, lines: list[str], prefix: str = ""
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Return path, key and value of each key with a comment. A mapping without one is a heading."""
    assert isinstance(mapping, yaml.MappingNode)
    for key, value in mapping.value:
        path = f"{prefix}{key.value}"
        if _comment(lines, key.start_mark.line):
            yield path, key, value
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _values(value, lines, f"{path}.")
        else:
            raise ValueError(
                f"values.yaml: {path} has no comment; describe it in a comment above it"
            )


def _comment(lines: list[str], line: int) -> str:
    """Return the comment directly above a line."""
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].lstrip("# "))
    return " ".join(found)


def _once(pattern: re.Pattern[str], new, text: str) -> str:
    """Replace the only match of a pattern. Raises ValueError unless there is exactly one."""
    text, count = pattern.subn(new, text)
    if count != 1:
        raise ValueError(f"{pattern.pattern!r} was found {count} times, 1 is expected")
    return text


if __name__ == "__main__":
    for path, text in parts().items():
        path.write_text(text)

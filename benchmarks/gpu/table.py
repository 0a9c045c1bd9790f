"""Renders the results of the check in Markdown."""

from typing import Any

_COLUMNS = (
    ("tokens/s", "tokensPerSecond", "{:,.0f}", 1),
    ("MFU, %", "mfu", "{:.1f}", 100),
    ("seconds a step", "stepSeconds", "{:.3f}", 1),
    ("peak of tensors, GB", "peakBytes", "{:.1f}", 1e-9),
    ("device in use, GB", "usedBytes", "{:.1f}", 1e-9),
    ("planned, GB", "plannedBytes", "{:.1f}", 1e-9),
    ("checkpoint stops training, s", "stallSeconds", "{:.2f}", 1),
    ("loss, first", "firstLoss", "{:.3f}", 1),
    ("loss, last", "lastLoss", "{:.3f}", 1),
)


def text(results: dict[str, dict[str, Any]]) -> str:
    """Return a table of all trainings, and a line for each other part."""
    lines = []
    for name, result in results.items():
        if not _is_training(name):
            lines.append(f"* {name}: {summary(result)}")
    names = [name for name in results if _is_training(name)]
    if not names:
        return "\n".join(lines)
    lines += ["", "| | " + " | ".join(title for title, *_ in _COLUMNS) + " | |"]
    lines.append("|---|" + "---|" * (len(_COLUMNS) + 1))
    for name in names:
        result = results[name]
        cells = [_cell(result.get(key), shown, factor) for _, key, shown, factor in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {_remark(result)} |")
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """Return the end of a part and its main figures in one line."""
    found = [result["status"]]
    for name, problem in result.get("kernels", {}).items() if _is_self_check(result) else ():
        found.append(f"{name} {problem or 'agrees'}")
    wrong = {name: text for name, text in result.get("combinations", {}).items() if text}
    found += [f"{name}: {text}" for name, text in wrong.items()]
    if "matmulFlops" in result:
        devices = ", ".join(result["devices"]) or "CPU"
        found.append(f"{devices}, torch {result['torch']}, transformers {result['transformers']}")
        found.append(f"matmul {result['matmulFlops'] / 1e12:.1f} TFLOP/s")
        found.append(f"copies {result['copyBytesPerSecond'] / 1e12:.2f} TB/s")
    if "tokensPerSecond" in result:
        found.append(f"{result['tokensPerSecond']:,.0f} tokens/s")
    found += [result[key] for key in ("problem", "stallProblem", "lastLine") if result.get(key)]
    return "; ".join([*found, f"{result.get('seconds', 0)} s"])


def _is_training(name: str) -> bool:
    return name.startswith(("train", "peer"))


def _is_self_check(result: dict[str, Any]) -> bool:
    return isinstance(result.get("kernels"), dict)


def _cell(value: float | None, shown: str, factor: float) -> str:
    return "" if value is None else shown.format(value * factor)


def _remark(result: dict[str, Any]) -> str:
    status = result["status"]
    parts = [] if status == "ok" else [status]
    parts += [result[key] for key in ("problem", "stallProblem") if result.get(key)]
    if result.get("recompute"):
        parts.append("recomputed")
    if result.get("moments") == "BF16":
        parts.append("moments in bf16")
    return ", ".join(parts)

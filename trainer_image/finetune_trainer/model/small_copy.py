"""A small copy of a model's configuration: every kind of layer, small sizes, the same features.

Sizes that do not change what is computed become small: width, heads, vocabulary, number of layers.
All else stays: features, factors, the size of a head (factors of RoPE depend on it).
"""

from collections.abc import Iterator
from typing import Any

WIDTH = 64
VOCABULARY = 96
_INNER = 96  # width of the feed-forward layers
_HEADS = 4
_MOST_LAYERS = 36
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
INNER_SIZES = (
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "hidden_size_per_layer_input",
)
"""Fields of config.json: the widths of feed-forward layers and of experts."""
# From these positions on, models compute their attention in another way, or forget what is further
# back. With a small value, the documents of a test cross it. Not with longrope, which exactness.py
# checks by its value.
_THRESHOLDS = (
    "attention_chunk_size",
    "floor_scale",
    "original_max_position_embeddings",
    "sliding_window",
)
_THRESHOLD = 4
_NOT_BY_LAYER = ("time_step_limit", "mlp_multipliers", "ssm_multipliers")  # other lists
_RECURRENT = {"mamba_d_state": 16, "ssm_state_size": 16, "mamba_chunk_size": 8, "chunk_size": 8}


class UnknownPatternError(Exception):
    """The kinds of layers of a model cannot be had in a small copy."""


def head_size(config: Any) -> int:
    """Return the size of an attention head."""
    # As a dictionary, because the attribute cannot be read where some layers have another size.
    size: int = config.to_dict().get("head_dim") or (
        config.hidden_size // config.num_attention_heads
    )
    return size


def narrow_width(config: Any, heads: int, width: int) -> int:
    """Return `width`, or that of some heads together if the size of a head follows from it."""
    size = head_size(config)
    follows = size * config.num_attention_heads == config.hidden_size
    return heads * size if follows or not config.to_dict().get("head_dim") else width


def small_copy(config: Any, layers: int, *, longrope: bool = False) -> Any:
    """Return the configuration of a small model with the first `layers` layers of this one.

    With `longrope`, the length from which that scaling of RoPE differs becomes small as well.
    """
    values = config.to_dict()
    every = config.num_hidden_layers
    keep_first_layers(values, every, layers)
    values |= {
        "vocab_size": VOCABULARY,
        "hidden_size": narrow_width(config, _HEADS, WIDTH),
        "num_attention_heads": _HEADS,
    }
    if shared := values.get("num_key_value_heads"):
        one_each = shared == config.num_attention_heads
        values["num_key_value_heads"] = _HEADS if one_each else min(2, shared)
    if "vocab_size_per_layer_input" in values:
        values["vocab_size_per_layer_input"] = VOCABULARY
    for key in INNER_SIZES:
        if isinstance(values.get(key), int) and values[key]:
            values[key] = _INNER
    for number, key in enumerate(_SPECIAL, 1):
        if values.get(key) is not None:
            values[key] = number
    values |= recurrent_sizes(values)
    kinds = [settings.get("rope_type") for settings in dictionaries(values)]
    if longrope or "longrope" not in kinds:
        _lower_thresholds(values)
    return type(config).from_dict(values)


def keep_first_layers(values: dict[str, Any], every: int, layers: int) -> None:
    """Change the values of a configuration with `every` layers to one with the first `layers`."""
    values["num_hidden_layers"] = layers
    for key, value in values.items():
        if isinstance(value, list) and len(value) == every and key not in _NOT_BY_LAYER:
            values[key] = value[:layers]
    if others := values.get("per_layer_config"):  # what some layers have otherwise
        values["per_layer_config"] = {key: others[key] for key in others if int(key) < layers}
    if shared := values.get("num_kv_shared_layers"):  # the last layers
        values["num_kv_shared_layers"] = max(0, shared - (every - layers))


def recurrent_sizes(values: dict[str, Any]) -> dict[str, int]:
    """Return the sizes of recurrent layers that fit the width in these values of config.json.

    A part that such layers compute at once becomes so short that documents of a test exceed it.
    """
    sizes = {key: most for key, most in _RECURRENT.items() if values.get(key)}
    groups = values.get("mamba_n_groups") or values.get("n_groups") or 1
    if values.get("mamba_num_heads"):
        sizes["mamba_num_heads"] = 2 * groups
    if (head := values.get("mamba_d_head")) and head != "auto":
        inner = values.get("mamba_d_ssm") and 2 * groups * head
        sizes["mamba_n_heads"] = (inner or values["mamba_expand"] * values["hidden_size"]) // head
        sizes |= {"mamba_d_ssm": inner} if inner else {}
    if keys := values.get("linear_num_key_heads"):
        sizes |= {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2 * values["linear_num_value_heads"] // keys,
        }
    return sizes


def _lower_thresholds(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _lower_thresholds(value)
        elif key in _THRESHOLDS and isinstance(value, int | float):
            values[key] = _THRESHOLD


def dictionaries(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every object inside the values of a configuration."""
    for value in values.values():
        if isinstance(value, dict):
            yield value
            yield from dictionaries(value)


def layers_needed(model: Any) -> int:
    """Return the number of first layers that contain every kind of layer of a model, at least 2."""
    kinds = list(_kinds(model))
    distinct = set(kinds)
    found = next(n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == distinct)
    if found > _MOST_LAYERS:
        raise UnknownPatternError(f"only its first {found} layers contain every kind of layer")
    return min(len(kinds), max(2, found))


def check_same_kinds(model: Any, small: Any) -> None:
    """Raise UnknownPatternError if the small copy of a model lacks a kind of layer."""
    if set(_kinds(model)) != set(_kinds(small)):
        raise UnknownPatternError("a small copy of it has other kinds of layers")


def _kinds(model: Any) -> Iterator[tuple[Any, ...]]:
    """Yield what distinguishes each layer, apart from its sizes and its number."""
    for layer in model.model.layers:
        yield tuple(
            (name, type(module).__name__, *_features(module))
            for name, module in layer.named_modules()
        )


def _features(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield switches and names, for numbers only whether there is one, and the parameters."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, bool | str):
            yield name, value
        elif value is None or isinstance(value, int | float):
            yield name, value is None
    for name, _ in module.named_parameters(recurse=False):
        yield "parameter", name

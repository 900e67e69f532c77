"""What only a run reads of a config: rotary embedding, activation, scales and caps.

None of it changes bytes or FLOPs. What `run` lacks is named in `not_run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.errors import BadFile
from sim.model.arithmetic import Arithmetic
from sim.model.readers.fields import FULL, SLIDING, Config, checked_number
from sim.model.spec import Llama3RopeScaling

SILU = ("silu", "swish")
GELU_TANH = ("gelu_pytorch_tanh",)


def run_fields(config: Config, *activations: str) -> dict[str, Any]:
    """RoPE, and what a run lacks of it or of the activation."""
    fields = rope(config)
    fields["not_run"] = fields.get("not_run", ()) + activation(config, *activations)
    return fields


def gemma(config: Config) -> dict[str, Any]:
    """What Gemma 2 and 3 do to embeddings, norms, scores and logits; only Gemma 2 caps scores."""
    gemma3 = config.values["model_type"].startswith("gemma3")
    fields = rope_by_window(config) if gemma3 else rope(config)
    acts = ("hidden_activation", "hidden_act")
    value = config.get(*acts, default=GELU_TANH[0])
    lacking: tuple[str, ...] = () if value in GELU_TANH else (f"activation {value!r}",)
    if config.get("use_bidirectional_attention", default=False):
        lacking += ("bidirectional attention",)
    fields["not_run"] = fields.get("not_run", ()) + lacking
    fields["arithmetic"] = Arithmetic(
        activation="gelu_tanh",
        norm_offset=1.0,
        embedding_scale=config.size("hidden_size") ** 0.5,
        attention_scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_cap=None if gemma3 else _cap(config, "attn_logit_softcapping", 50.0),
        logit_cap=_cap(config, "final_logit_softcapping", None if gemma3 else 30.0),
        local_rope_theta=fields.pop("local_rope_theta", None),
    )
    return fields


def _cap(config: Config, key: str, usual: float | None) -> float | None:
    """A cap, or None where the config has null."""
    value = config.values.get(key, usual)
    return None if value is None else checked_number(key, value)


def activation(config: Config, *wanted: str) -> tuple[str, ...]:
    """What `run` lacks where the activation is not one of `wanted`."""
    value = config.get("hidden_act", "activation_function", default=wanted[0])
    return () if value in wanted else (f"activation {value!r}",)


def rope(config: Config) -> dict[str, Any]:
    """Base and scaling of the rotary embedding; transformers 5 nests both in rope_parameters.

    A type of scaling other than Llama 3's changes no bytes or FLOPs, but `run` lacks it.
    """
    parameters = config.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(parameters, Mapping):
        raise BadFile(f"rope_scaling(={parameters!r}) must be an object with a rope_type.")
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0
    made = {"rope_theta": checked_number("rope_theta", theta)}
    return made | _scaling(parameters)


def rope_by_window(config: Config) -> dict[str, Any]:
    """As `rope`, with a base of its own for layers with a window (Gemma 3)."""
    parameters = config.get("rope_parameters", default={})
    local = config.get("rope_local_base_freq", default=10_000.0)
    if isinstance(parameters, Mapping) and isinstance(parameters.get(FULL), Mapping):
        windowed = parameters.get(SLIDING) or {}
        local = windowed.get("rope_theta") or local
        made = _scaling(parameters[FULL])
        theta = parameters[FULL].get("rope_theta") or 1_000_000.0
    else:
        made = rope(config)
        theta = made.pop("rope_theta") if config.get("rope_theta") else 1_000_000.0
    made["rope_theta"] = checked_number("rope_theta", theta)
    return made | {"local_rope_theta": checked_number("rope_local_base_freq", local)}


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind != "llama3":
        return {} if kind == "default" else {"not_run": (f"rope type {kind!r}",)}

    def need(key: str) -> float:
        if key not in parameters:
            raise BadFile(f"rope scaling lacks the field {key!r}; add it to the config.")
        return checked_number(key, parameters[key])

    scaling = Llama3RopeScaling(
        factor=need("factor"),
        low_freq_factor=need("low_freq_factor"),
        high_freq_factor=need("high_freq_factor"),
        original_max_positions=int(need("original_max_position_embeddings")),
    )
    return {"rope_scaling": scaling}

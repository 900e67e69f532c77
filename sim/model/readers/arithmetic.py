"""What only a run reads of a config: rotary embedding, activation, scales and caps.

None of it changes bytes or FLOPs. What `run` lacks is named in `not_run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any

from sim.errors import BadFile
from sim.model.arithmetic import PLAIN, Arithmetic, Router, Yarn
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
    fields["arithmetic"] = replace(
        fields.get("arithmetic", PLAIN),
        activation="gelu_tanh",
        norm_offset=1.0,
        embedding_scale=config.size("hidden_size") ** 0.5,
        attention_scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_cap=None if gemma3 else _cap(config, "attn_logit_softcapping", 50.0),
        logit_cap=_cap(config, "final_logit_softcapping", None if gemma3 else 30.0),
        local_rope_theta=fields.pop("local_rope_theta", None),
    )
    return fields


GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
"""RoPE of gpt-oss where its config says nothing."""


def gpt_oss(config: Config) -> dict[str, Any]:
    """Sinks, clamped experts with biases, and YaRN."""
    usual = {"rope_theta": 150_000.0, "rope_parameters": GPT_OSS_ROPE}
    if config.get("rope_parameters", "rope_scaling") is not None:
        usual.pop("rope_parameters")
    fields = run_fields(replace(config, values={**usual, **config.values}), *SILU)
    biased = bool(config.get("attention_bias", default=True))
    how = replace(
        fields.get("arithmetic", PLAIN),
        sinks=True,
        swiglu_limit=config.number("swiglu_limit", default=7.0),
        swiglu_alpha=config.number("swiglu_alpha", default=1.702),
        router=Router("chosen", biased=True),
    )
    return {**fields, "qkv_bias": biased, "out_bias": biased, "arithmetic": how}


def deepseek_v3(config: Config) -> dict[str, Any]:
    """Experts chosen by sigmoids within groups, and YaRN that sharpens scores too."""
    fields = run_fields(config, *SILU)
    for key, wanted in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")):
        value = config.get(key, default=wanted)
        if value != wanted:
            fields["not_run"] += (f"{key} {value!r}",)
    n_groups = config.size("n_group", default=8)
    n_routed = config.size("n_routed_experts")
    if n_routed % n_groups or n_routed < 2 * n_groups:
        fields["not_run"] += (f"{n_routed} experts in {n_groups} groups",)
    how = fields.get("arithmetic", PLAIN)
    scale = None
    parameters = config.get("rope_parameters", "rope_scaling", default={})
    if how.yarn is not None and (weight := parameters.get("mscale_all_dim")):
        head_dim = config.size("qk_nope_head_dim") + config.size("qk_rope_head_dim")
        scale = head_dim**-0.5 * yarn_scale(how.yarn.factor, weight) ** 2
    router = Router(
        "sigmoid",
        normalised=bool(config.get("norm_topk_prob", default=True)),
        scale=config.number("routed_scaling_factor", default=2.5),
        n_groups=n_groups,
        top_groups=config.size("topk_group", default=4),
    )
    interleaved = bool(config.get("rope_interleave", default=True))
    fields["arithmetic"] = replace(
        how, attention_scale=scale, rope_interleaved=interleaved, router=router
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

    `run` lacks types of scaling other than Llama 3's and YaRN's.
    """
    parameters = config.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(parameters, Mapping):
        raise BadFile(f"rope_scaling(={parameters!r}) must be an object with a rope_type.")
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0
    made = {"rope_theta": checked_number("rope_theta", theta)}
    return made | _scaling(parameters, config)


def rope_by_window(config: Config) -> dict[str, Any]:
    """As `rope`, with a base of its own for layers with a window (Gemma 3)."""
    parameters = config.get("rope_parameters", default={})
    local = config.get("rope_local_base_freq", default=10_000.0)
    if isinstance(parameters, Mapping) and isinstance(parameters.get(FULL), Mapping):
        windowed = parameters.get(SLIDING) or {}
        local = windowed.get("rope_theta") or local
        made = _scaling(parameters[FULL], config)
        theta = parameters[FULL].get("rope_theta") or 1_000_000.0
    else:
        made = rope(config)
        theta = made.pop("rope_theta") if config.get("rope_theta") else 1_000_000.0
    made["rope_theta"] = checked_number("rope_theta", theta)
    return made | {"local_rope_theta": checked_number("rope_local_base_freq", local)}


def _yarn(parameters: Mapping[str, Any], config: Config) -> Yarn:
    """YaRN; without a factor it is the ratio of the positions."""
    positions = config.size("max_position_embeddings", "model_max_length")
    original = parameters.get("original_max_position_embeddings") or positions
    factor = checked_number("factor", parameters.get("factor") or positions / original)
    both = [float(parameters.get(key) or 0.0) for key in ("mscale", "mscale_all_dim")]
    magnitude = parameters.get("attention_factor")
    if magnitude is None and all(both):
        magnitude = yarn_scale(factor, both[0]) / yarn_scale(factor, both[1])
    return Yarn(
        factor=factor,
        fast=checked_number("beta_fast", parameters.get("beta_fast") or 32.0),
        slow=checked_number("beta_slow", parameters.get("beta_slow") or 1.0),
        original_max_positions=int(original),
        truncate=bool(parameters.get("truncate", True)),
        magnitude=yarn_scale(factor) if magnitude is None else float(magnitude),
    )


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """`0.1 weight ln(factor) + 1`, by which YaRN makes scores sharper."""
    return 0.1 * weight * log(factor) + 1.0 if factor > 1 else 1.0


def _scaling(parameters: Mapping[str, Any], config: Config) -> dict[str, Any]:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "yarn":
        return {"arithmetic": Arithmetic(yarn=_yarn(parameters, config))}
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

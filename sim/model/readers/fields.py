"""The fields of a config.json, with a record of those that a reader has understood."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.errors import BadFile
from sim.model.attention import check_sizes
from sim.model.layers import Layer

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

SIZED = re.compile(
    r"layer|head|dim|size|rank|expert|window|attention|attn|hidden|moe|ffn|mlp|index|sparse|"
    r"ratio|conv|state|mamba|ssm|quant|bits|latent|group|block|share|kv|linear|chunk|bias"
)
"""Names of fields that may change bytes or FLOPs, so that a reader has to know them."""

IRRELEVANT = (
    r"^_|dropout|^(vision|visual|image|video|audio|img|mm|media|projector|patch|vocoder|talker)|"
    r"_token_(id|index)$|nextn|^(use_)?mtp|num_mtp|index_share_for_mtp|^initializer|_init$|"
    r"^(embd|embed)_|^output_(attentions|hidden_states|router)|chunk_size_feed_forward|"
    r"^max_(length|window_layers)$|^(is_)?encoder|norm_eps|layer_norm|layernorm|"
    r"^router_|_loss|scoring|topk_(method|group)$|n_group$|num_expert_group|"
    r"^(num_|moe_|router_)?top_?k$|"
    r"routing_bias|router_bias|router_scaling|moe_(renormalize|router)|routed_scaling|ep_size|"
    r"no_repeat_ngram|num_beam|num_return|finetuning|pretraining|problem_type|labels?$|"
    r"bidirectional|head_(pruned|mask)|pruned_heads|num_logits|num_reward|rotary|mrope|"
    r"rope_(theta|scaling|parameters|local_base_freq|type|interleave)|no_rope|"
    r"softcapping|softcap|query_pre_attn|attn_implementation|attention_implementation|"
    r"use_cache|cache_implementation|qk_norm|kernels$|residual|time_step|dt_|_dtype$|"
    r"hidden_act|mlp_bias|attention_bias|_act(ivation)?$|activation_|swiglu|scale|multiplier|"
    r"value_scale|sink_bias|kv_cache_dtype|auto_map|architectures|transformers|tokenizer|"
    r"full_precision|image_size|temperature_tuning|floor_scale|attn_temperature|pad_vocab|"
    r"spatial|sparse_(init_block|local_block|score_type|disable)|gate_lower_bound|"
    r"latent_moe_use_norm|use_grouped|attn_res_block|hash_layers|sinkhorn|seq_aux|max_batch|"
    r"overlap$|hidden_dropout|ignore_index|begin_suppress|type_vocab|^id2|position_bias|"
    r"rescale|^norm_|_norm$|linear_bias|conv_bias|proj_bias|use_bias|lm_head_bias|"
    r"interleave$|nope_layer|shared_expert_overlap|vision_|_image|expert_bias|tie_"
)
"""Names of fields that change neither bytes nor FLOPs by a thousandth: norms, biases, activations,
routing scores, draft layers, other modalities, training. `re` compiles it for the first config that
has a field to try, because that takes 3 ms."""


@dataclass
class Config:
    """The fields of a language model's config.

    Args:
        values: the fields as read from JSON.
        defaults: of the family, for fields that its configs may leave out.
        known: fields that were asked for.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)

    def get(self, *keys: str, default: Any = None) -> Any:
        """The first of these spellings that is present and not null."""
        self.known.update(keys)
        for values in (self.values, self.defaults):
            for key in keys:
                if values.get(key) is not None:
                    return values[key]
        return default

    def need(self, *keys: str) -> Any:
        """As `get`, of a field that must be present.

        Raises:
            BadFile: it is not.
        """
        value = self.get(*keys)
        if value is None:
            raise BadFile(f"field {keys[0]!r} is missing; add it to the config.")
        return value

    def size(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; needed if there is no default.

        Raises:
            BadFile: absent, or BadInput: another value; both name the field.
        """
        value = self.need(*keys) if default is None else self.get(*keys, default=default)
        given = next((key for key in keys if self.values.get(key) is not None), keys[0])
        check_sizes("config", least, **{given: value})
        return int(value)

    def sizes(self, **fields: str) -> dict[str, Any]:
        """Sizes by other names: `sizes(n_heads="num_attention_heads")`."""
        return {name: self.size(key) for name, key in fields.items()}

    def optional_size(self, *keys: str) -> int | None:
        """A size, or None where it is absent, null or 0."""
        return self.size(*keys, least=0) or None if self.get(*keys) is not None else None

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.need(*keys) if default is None else self.get(*keys, default=default)
        return checked_number(keys[0], value)

    def part(self, key: str) -> Config:
        """The fields of an object within the config; its absence is an object without fields."""
        value = self.get(key, default={})
        if not isinstance(value, Mapping):
            raise BadFile(f"{key}(={value!r}) must be an object.")
        return Config(value)

    def choice(self, key: str, wanted: Any, default: Any = None) -> None:
        """Refuse any value but `wanted`, which is what the reader assumes."""
        value = self.get(key, default=wanted if default is None else default)
        if value != wanted:
            raise BadFile(f"{key}(={value!r}) is not supported; it must be {wanted!r}.")

    @property
    def n_layers(self) -> int:
        n_layers = self.size("num_hidden_layers", "n_layers")
        check_sizes("config", 1, 10_000, num_hidden_layers=n_layers)
        return n_layers

    def pattern(self, *keys: str, of: Sequence[Any]) -> list[Any] | None:
        """One of the values `of` for each layer, or None where the field is absent."""
        kinds, n_layers = self.get(*keys), self.n_layers
        if kinds is None:
            return None
        if isinstance(kinds, str):
            kinds = list(kinds)
        if not isinstance(kinds, list) or len(kinds) != n_layers or any(k not in of for k in kinds):
            allowed = " or ".join(repr(one) for one in of)
            raise BadFile(f"{keys[0]} must name {allowed} for each of the {n_layers} layers.")
        return kinds

    def unknown(self) -> list[str]:
        """Fields that may change bytes or FLOPs and that no reader asked for."""
        return [
            key
            for key, value in self.values.items()
            if key not in self.known
            and value not in (None, False, 0, "", [], {})
            and SIZED.search(key.lower())
            and not re.search(IRRELEVANT, key.lower())
        ]


@dataclass(frozen=True, slots=True)
class Description:
    """What a family's reader makes of a config: its layers, and fields of `ModelSpec`."""

    layers: list[Layer]
    fields: dict[str, Any] = field(default_factory=dict)


def checked_number(key: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        BadFile: another value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadFile(f"{key}(={value!r}) must be a finite number > 0.")
    return float(value)

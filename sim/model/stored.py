"""Bits of stored weights: formats of quantised checkpoints, their scales, the modules left out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.errors import BadFile
from sim.model.layers import Experts, Layer
from sim.model.spec import ModuleBits

ALGORITHMS = {
    "FP8": 8.0,
    "FP8_PER_CHANNEL_PER_TOKEN": 8.0,
    "FP8_PB_WO": 8 + 32 / 128**2,
    "INT8_SQ": 8.0,
    "W8A8_SQ_PER_CHANNEL": 8.0,
    "W8A16": 8.0,
    "MXFP8": 8 + 8 / 32,
    "NVFP4": 4 + 8 / 16,
    "NVFP4_AWQ": 4 + 8 / 16,
    "W4A16_NVFP4": 4 + 8 / 16,
    "MXFP4": 4 + 8 / 32,
    "W4A8_MXFP4_FP8": 4 + 8 / 32,
    "W4A16": 4 + 16 / 128,
    "W4A16_AWQ": 4 + 16 / 128,
    "W4A8_AWQ": 4 + 16 / 128,
}
"""Bits of an element with its share of the block scales, by modelopt's `quant_algo`."""

ACTIVATION_BITS = {"NVFP4": 4, "NVFP4_AWQ": 4, "W4A8_MXFP4_FP8": 8, "W4A8_AWQ": 8}
"""Bits of activations that weights of 4 bits are multiplied with, by `quant_algo`."""

KV_ALGORITHMS = {"FP8": 8, "INT8": 8, "FP8_E4M3": 8, "FP8_E5M2": 8, "NVFP4": 4, "INT4": 4}

LEFT_OUT = ("ignore", "modules_to_not_convert", "exclude_modules", "llm_int8_skip_modules")
"""Fields that list modules which keep the model's dtype."""

ATTENTION = ("self_attn", "linear_attn", "attn", "mixer")
FFN = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer")
PATHS = {
    "experts": [f"{one}.experts" for one in FFN],
    "gate": [f"{one}.gate" for one in FFN],
    "shared_experts": [f"{one}.shared_expert{s}.up_proj" for one in FFN for s in ("", "s")],
    "latent_proj": ["mixer.fc1_latent_proj", "mlp.latent_proj"],
}
"""Names of the parts of a layer with experts behind its number."""

OTHER_PATHS = {"gemma4": {"experts": ["experts"], "gate": ["router"], "shared_experts": ["mlp"]}}
"""Families with other names."""

SMALL = ("gate", "conv1d", "in_proj_ba", "compressor", "indexer.compressor", "b_proj", "f_proj")
"""Matrices that all formats leave in the model's dtype."""


def _of_config_groups(quant: Mapping[str, Any]) -> float:
    """Bits of compressed-tensors: all groups must say the same for linear layers."""
    found = set()
    for group in (quant.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        bits, block = weights.get("num_bits"), weights.get("group_size") or 0
        if bits not in (4, 8) or weights.get("strategy") == "token":
            raise BadFile(f"quantization_config.config_groups: weights {weights!r} not supported.")
        structure = weights.get("block_structure")
        scale_bits = 16 if weights.get("type") == "int" else 8
        zeros = 0 if weights.get("symmetric", True) else bits
        scales = (scale_bits + zeros) / block if block > 0 else 0
        if isinstance(structure, list):
            scales = 32 / (structure[0] * structure[1])
        found.add(bits + scales)
    if len(found) != 1:
        raise BadFile(
            f"quantization_config.config_groups give {len(found)} widths of weights; only one is "
            "supported."
        )
    return float(found.pop())


def _base_bits(quant: Mapping[str, Any], own: float) -> float:
    """Bits of an element of the modules that are quantised.

    Raises:
        BadFile: names the method that is not supported.
    """
    method = quant.get("quant_method") or ("modelopt" if "quant_algo" in quant else None)
    bits, group = quant.get("bits", quant.get("w_bit", 4)), quant.get("group_size", 128)
    match method:
        case "fp8" | "fbgemm_fp8":
            rows, columns = quant.get("weight_block_size") or (0, 0)
            scale = 8 if quant.get("scale_fmt") == "ue8m0" else 32
            return 8 + (scale / (rows * columns) if rows else 0)
        case "mxfp4":
            return ALGORITHMS["MXFP4"]
        case "awq" | "gptq":
            return float(bits + ((16 + bits) / group if group > 0 else 0))
        case "bitsandbytes":
            if quant.get("load_in_8bit"):
                return 8.0
            return 4 + (8 / 64 + 32 / 64 / 256 if quant.get("bnb_4bit_use_double_quant") else 0.5)
        case "compressed-tensors":
            return _of_config_groups(quant)
        case "modelopt":
            name = quant.get("quant_algo")
            if name == "MIXED_PRECISION":
                return own
            return _algorithm(name)
    raise BadFile(
        f"quantization_config.quant_method {method!r} is not supported; supported: fp8, fbgemm_fp8,"
        " mxfp4, awq, gptq, bitsandbytes, compressed-tensors, modelopt."
    )


def _algorithm(name: Any) -> float:
    if name not in ALGORITHMS:
        raise BadFile(
            f"quantization_config.quant_algo {name!r} is not supported; supported: "
            f"{', '.join(ALGORITHMS)}."
        )
    return ALGORITHMS[name]


class _LeftOut:
    """The modules that lists of names, wildcards and regular expressions leave out."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._of_layer: dict[str, list[re.Pattern[str]]] = defaultdict(list)
        self._anywhere = []
        self._components = set()
        for pattern in patterns:
            head, _, tail = pattern.partition("layers.")
            if pattern.startswith("re:"):
                self._anywhere.append(re.compile(pattern[3:]))
            elif tail and not head.endswith("*"):
                number = tail.partition(".")[0].rstrip("*")
                self._of_layer[number if number.isdigit() else ""].append(_wildcard(tail))
            elif "*" in pattern:
                self._anywhere.append(_wildcard(pattern))
            else:
                self._components.add(pattern.rpartition(".")[2])

    def __contains__(self, module: str) -> bool:
        number, _, rest = module.partition(".")
        if self._components.intersection(rest.split(".")):
            return True
        patterns = self._of_layer[number] + self._of_layer[""]
        if any(one.match(module) for one in patterns):
            return True
        return any(one.match(f"model.layers.{module}") for one in self._anywhere)


def _wildcard(pattern: str) -> re.Pattern[str]:
    """Matches a module of this name and all modules inside it."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*") + r"(\..*)?$")


def _listed(quant: Mapping[str, Any]) -> dict[str, float]:
    """Bits by module of `quantized_layers`, all experts of a layer as one."""
    found = {}
    for name, entry in (quant.get("quantized_layers") or {}).items():
        module = re.sub(
            r"(experts?)\.\d+\..*|(\bexperts)\..*", r"\1\2", name.rpartition("layers.")[2]
        )
        found[module] = _algorithm(entry.get("quant_algo"))
    return found


def _modules(
    family: str, number: int, layer: Layer, hidden: int
) -> Iterator[tuple[str, str, list[str], int]]:
    """Group, name, possible paths and elements of each matrix of a layer."""
    for leaf, elements in layer.attention.matrices(hidden).items():
        yield "attention", leaf, [f"{number}.{one}.{leaf}" for one in ATTENTION], elements
    paths = PATHS | OTHER_PATHS.get(family, {})
    for leaf, elements in layer.ffn.matrices(hidden).items():
        if isinstance(layer.ffn, Experts):
            group = "experts" if leaf == "experts" else "shared"
            yield group, leaf, [f"{number}.{path}" for path in paths[leaf]], elements
        else:
            yield "dense", leaf, [f"{number}.{one}.{leaf}" for one in FFN], elements


def module_bits(
    quant: Mapping[str, Any],
    family: str,
    layers: Sequence[Layer],
    hidden: int,
    own: float,
    expert_dtype: str | None = None,
) -> ModuleBits:
    """Bits of an element of each group of matrices, averaged over the layers.

    Args:
        quant: `quantization_config`, with the fields of `hf_quant_config.json` if there are any.
        own: bits of the model's dtype, for modules that are left out.
        expert_dtype: DeepSeek-V4's format of experts, "fp4" if it differs from the others.

    Raises:
        BadFile: names the method or field that is not supported.
    """
    own = float(own)  # as a plan file is read back
    base, listed = _base_bits(quant, own), _listed(quant)
    named = LEFT_OUT if not (listed and quant.get("quant_method") == "fp8") else LEFT_OUT[1:2]
    left_out = _LeftOut([str(one) for key in named for one in quant.get(key) or ()])
    elements: Counter[str] = Counter()
    bits: Counter[str] = Counter()
    for number, layer in enumerate(layers):
        for group, leaf, names, count in _modules(family, number, layer, hidden):
            one = base
            if leaf in SMALL or any(name in left_out for name in names):
                one = own
            elif group == "experts" and expert_dtype == "fp4":
                one = ALGORITHMS["MXFP4"]
            one = next((listed[name] for name in names if name in listed), one)
            elements[group] += count
            bits[group] += count * one  # type: ignore[assignment]
        elements["shared"] += layer.other_elements
        bits["shared"] += layer.other_elements * own  # type: ignore[assignment]
    groups = ("attention", "dense", "experts", "shared")
    means = {group: bits[group] / elements[group] if elements[group] else own for group in groups}
    head = next((one for name, one in listed.items() if name.endswith("lm_head")), own)
    return ModuleBits(**means, head=head, embeddings=own)


def activation_bits(quant: Mapping[str, Any]) -> int | None:
    """Bits of activations that weights of 4 bits are multiplied with; None for the dtype."""
    groups = (quant.get("config_groups") or {}).values()
    for group in groups:
        inputs, weights = group.get("input_activations") or {}, group.get("weights") or {}
        if weights.get("num_bits") == 4 and inputs.get("num_bits") in (4, 8):
            return int(inputs["num_bits"])
    return ACTIVATION_BITS.get(str(quant.get("quant_algo")))


def kv_bits(quant: Mapping[str, Any]) -> int | None:
    """Bits of the KV cache that a checkpoint asks for, None for the model's dtype.

    Raises:
        BadFile: another format.
    """
    asked = quant.get("kv_cache_quant_algo") or quant.get("kv_cache_scheme")
    if asked is None:
        return None
    bits = asked.get("num_bits") if isinstance(asked, Mapping) else None
    if isinstance(asked, str):
        bits = KV_ALGORITHMS.get(asked.upper())
    if bits not in (4, 8):
        raise BadFile(f"kv_cache_scheme {asked!r} is not supported; it must have 8 or 4 bits.")
    return int(bits)

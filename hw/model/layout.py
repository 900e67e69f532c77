"""Names and shapes of the tensors of every family, random or read from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hw.model.weights import (
    OPT_POSITION_OFFSET,
    TORCH_DTYPE,
    Experts,
    Heads,
    Latents,
    Layer,
    Linear,
    Mlp,
    Norm,
    Weights,
    check_runnable,
)
from sim.errors import Mismatch
from sim.model import layers as sizes
from sim.model.attention import LatentAttention
from sim.model.spec import ModelSpec

Rows = Sequence[tuple[str, int]]
"""Name and number of rows of each tensor of a checkpoint that one of ours joins."""

Change = Callable[[Tensor], Tensor] | None

OTHER_NAMES = (
    (r"\.mlp\.gate\.", ".block_sparse_moe.gate."),
    (r"\.mlp\.experts\.(\d+)\.gate_proj\.", r".block_sparse_moe.experts.\1.w1."),
    (r"\.mlp\.experts\.(\d+)\.down_proj\.", r".block_sparse_moe.experts.\1.w2."),
    (r"\.mlp\.experts\.(\d+)\.up_proj\.", r".block_sparse_moe.experts.\1.w3."),
)
"""Names that a tensor has in checkpoints of Mixtral."""


class Source(Protocol):
    """Makes the tensors of a model."""

    def join(
        self, rows: Rows, *rest: int, std: float, mean: float = 0.0, wide: bool = False
    ) -> Tensor:
        """One tensor of the rows of several; `rest` are the sizes behind the first.

        Args:
            wide: in 32 bit.
        """

    def stack(
        self, whole: str, parts: Sequence[Rows], *rest: int, std: float, of_whole: Change = None
    ) -> Tensor:
        """One tensor [parts, rows, *rest], from the name `whole` or from `join`ed parts.

        Args:
            of_whole: brings the tensor `whole` into our order.
        """


class RandomSource:
    """Seeded normal values of the given deviation."""

    def __init__(self, model: ModelSpec, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._dtype, self._device = TORCH_DTYPE[model.dtype], device

    def join(
        self, rows: Rows, *rest: int, std: float, mean: float = 0.0, wide: bool = False
    ) -> Tensor:
        drawn = self._draw(sum(n for _, n in rows), *rest, std=std).add_(mean)
        return drawn.float() if wide else drawn

    def stack(
        self,
        whole: str,  # noqa: ARG002
        parts: Sequence[Rows],
        *rest: int,
        std: float,
        of_whole: Change = None,  # noqa: ARG002
    ) -> Tensor:
        return self._draw(len(parts), sum(n for _, n in parts[0]), *rest, std=std)

    def _draw(self, *shape: int, std: float) -> Tensor:
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        return values.normal_(0.0, std, generator=self._generator)


class NamedSource:
    """Tensors under their Hugging Face names, copied to the device one by one.

    Args:
        read: the tensor of a name, anywhere and in any float dtype; None if absent.
    """

    def __init__(
        self, model: ModelSpec, read: Callable[[str], Tensor | None], device: torch.device
    ) -> None:
        self._read, self._dtype, self._device = read, TORCH_DTYPE[model.dtype], device

    def join(
        self,
        rows: Rows,
        *rest: int,
        std: float,  # noqa: ARG002
        mean: float = 0.0,  # noqa: ARG002
        wide: bool = False,
    ) -> Tensor:
        shape = (sum(n for _, n in rows), *rest)
        dtype = torch.float32 if wide else self._dtype
        return self._fill(torch.empty(shape, dtype=dtype, device=self._device), rows)

    def stack(
        self,
        whole: str,
        parts: Sequence[Rows],
        *rest: int,
        std: float,  # noqa: ARG002
        of_whole: Change = None,
    ) -> Tensor:
        out = self._empty(len(parts), sum(n for _, n in parts[0]), *rest)
        found = self._read(whole)
        if found is not None:
            return self._copy(out, whole, of_whole(found) if of_whole else found)
        for one, rows in zip(out, parts, strict=True):
            self._fill(one, rows)
        return out

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _fill(self, out: Tensor, rows: Rows) -> Tensor:
        for (name, _), part in zip(rows, out.split([n for _, n in rows]), strict=True):
            tensor = self._find(name)
            if tensor is None:
                raise Mismatch(
                    f"the checkpoint has no tensor {name!r}, which its config.json asks for; use "
                    "the config.json of these weights, or all of the weight files."
                )
            self._copy(part, name, tensor)
        return out

    def _find(self, name: str) -> Tensor | None:
        found = self._read(name)
        for pattern, other in OTHER_NAMES:
            if found is None and re.search(pattern, name):
                found = self._read(re.sub(pattern, other, name))
        return found

    def _copy(self, out: Tensor, name: str, tensor: Tensor) -> Tensor:
        if tensor.shape != out.shape:
            raise Mismatch(
                f"tensor {name!r} has shape {tuple(tensor.shape)} and config.json asks for "
                f"{tuple(out.shape)}; use the config.json of these weights."
            )
        return out.copy_(tensor)


class Builder:
    """The weights of a model out of a source; the order of the tensors decides random ones."""

    def __init__(self, model: ModelSpec, source: Source) -> None:
        self._model, self._source = model, source
        self._opt = model.family == "opt"
        self._root = "model.decoder" if self._opt else "model"

    def weights(self) -> Weights:
        model, h = self._model, self._model.hidden_size
        # With a tied head, an embedding that stood out would answer every token with itself.
        std = h**-0.5 if model.tie_embeddings else 1.0
        embed = self._table(f"{self._root}.embed_tokens", model.vocab_size, std)
        rows = model.max_positions + OPT_POSITION_OFFSET
        return Weights(
            model=model,
            embed=embed,
            positions=None if model.rotary else self._table(self._positions, rows, std),
            layers=[self._layer(number) for number in range(model.n_layers)],
            final_norm=self._norm(f"{self._root}.{'final_layer_norm' if self._opt else 'norm'}", h),
            head=embed
            if model.tie_embeddings
            else self._table("lm_head", model.vocab_size, h**-0.5),
        )

    @property
    def _positions(self) -> str:
        return f"{self._root}.embed_positions"

    def _table(self, name: str, rows: int, std: float) -> Tensor:
        return self._source.join([(f"{name}.weight", rows)], self._model.hidden_size, std=std)

    def _join(self, names: Rows, in_size: int, biased: bool) -> Linear:
        bias = None
        if biased:
            bias = self._source.join([(f"{name}.bias", n) for name, n in names], std=0.1)
        rows = [(f"{name}.weight", n) for name, n in names]
        return Linear(self._source.join(rows, in_size, std=in_size**-0.5), bias)

    def _linear(self, name: str, out_size: int, in_size: int, biased: bool = False) -> Linear:
        return self._join([(name, out_size)], in_size, biased)

    def _norm(self, name: str, size: int) -> Norm:
        offset = self._model.arithmetic.norm_offset
        weight = self._source.join([(f"{name}.weight", size)], std=0.1, mean=1.0 - offset)
        if offset:
            weight = weight.float().add_(offset)
        bias = self._source.join([(f"{name}.bias", size)], std=0.1) if self._opt else None
        return Norm(weight, bias)

    def _layer(self, number: int) -> Layer:
        at, h = f"{self._root}.layers.{number}", self._model.hidden_size
        names = ("input_layernorm", "post_attention_layernorm")
        normed = self._model.output_norms
        if self._opt:
            names = ("self_attn_layer_norm", "final_layer_norm")
        elif normed:
            names = ("input_layernorm", "pre_feedforward_layernorm")
        return Layer(
            input_norm=self._norm(f"{at}.{names[0]}", h),
            attention=self._latents(f"{at}.self_attn", self._model.mla)
            if self._model.mla is not None
            else self._heads(f"{at}.self_attn", self._model.window(number)),
            attention_norm=self._norm(f"{at}.post_attention_layernorm", h) if normed else None,
            mlp_norm=self._norm(f"{at}.{names[1]}", h),
            ffn=self._ffn(at, self._model.layers[number].ffn),
            ffn_norm=self._norm(f"{at}.post_feedforward_layernorm", h) if normed else None,
        )

    def _heads(self, at: str, window: int | None) -> Heads:
        model, h = self._model, self._model.hidden_size
        parts = zip("qkv", (model.q_size, model.kv_size, model.kv_size), strict=True)
        return Heads(
            qkv=self._join([(f"{at}.{one}_proj", n) for one, n in parts], h, model.qkv_bias),
            q_norm=self._norm(f"{at}.q_norm", model.head_dim) if model.qk_norm else None,
            k_norm=self._norm(f"{at}.k_norm", model.head_dim) if model.qk_norm else None,
            out=self._linear(
                f"{at}.{'out' if self._opt else 'o'}_proj", h, model.q_size, model.out_bias
            ),
            sinks=self._source.join([(f"{at}.sinks", model.n_heads)], std=1.0)
            if model.arithmetic.sinks
            else None,
            local=window is not None and model.arithmetic.local_rope_theta is not None,
        )

    def _latents(self, at: str, mla: LatentAttention) -> Latents:
        model, h, rank = self._model, self._model.hidden_size, mla.q_lora_rank
        heads, plain, rotated = model.n_heads, mla.qk_nope_head_dim, mla.qk_rope_head_dim
        each = plain + rotated
        down = self._linear(f"{at}.q_a_proj", rank, h, model.qkv_bias) if rank else None
        built = heads * (plain + mla.v_head_dim)
        made = Latents(
            cached=self._linear(f"{at}.kv_a_proj_with_mqa", model.kv_token_size, h, model.qkv_bias),
            cached_norm=self._norm(f"{at}.kv_a_layernorm", mla.kv_lora_rank),
            down=down,
            down_norm=self._norm(f"{at}.q_a_layernorm", rank) if rank else None,
            asked=self._linear(f"{at}.q_{'b_' if rank else ''}proj", heads * each, rank or h),
            up=self._linear(f"{at}.kv_b_proj", built, mla.kv_lora_rank).weight.unflatten(
                0, (heads, -1)
            ),
            out=self._linear(f"{at}.o_proj", h, heads * mla.v_head_dim, model.out_bias),
        )
        if model.arithmetic.rope_interleaved:
            _apart(made.cached.weight[-rotated:])
            _apart(made.asked.weight.unflatten(0, (heads, each))[:, plain:].transpose(0, 1))
            if made.cached.bias is not None:
                _apart(made.cached.bias[-rotated:])
        return made

    def _ffn(self, at: str, ffn: sizes.Dense | sizes.Experts) -> Mlp | Experts:
        if isinstance(ffn, sizes.Experts):
            biased = self._model.arithmetic.router.biased
            made = self._gpt_oss_experts if biased else self._experts
            return made(f"{at}.mlp", ffn)
        if not self._opt:
            return self._mlp(f"{at}.mlp", ffn.width, self._model.mlp_bias)
        h, biased = self._model.hidden_size, self._model.mlp_bias
        up = self._linear(f"{at}.fc1", ffn.width, h, biased)
        return Mlp(None, up, self._linear(f"{at}.fc2", h, ffn.width, biased))

    def _mlp(self, at: str, width: int, biased: bool = False) -> Mlp:
        h = self._model.hidden_size
        return Mlp(
            gate=self._linear(f"{at}.gate_proj", width, h, biased),
            up=self._linear(f"{at}.up_proj", width, h, biased),
            down=self._linear(f"{at}.down_proj", h, width, biased),
        )

    def _gpt_oss_experts(self, at: str, ffn: sizes.Experts) -> Experts:
        """Stored as [in, out], with rows of the gate and the others taking turns."""
        h, f = self._model.hidden_size, ffn.width

        def stack(name: str, rows: int, *rest: int, change: Change) -> Tensor:
            parts = [[(f"{at}.experts.{name}", rows)]] * ffn.n_routed
            std = rest[0] ** -0.5 if rest else 0.1
            return self._source.stack(parts[0][0][0], parts, *rest, std=std, of_whole=change)

        return Experts(
            router=self._linear(f"{at}.router", ffn.n_routed, h, True),
            correction=None,
            gate_up=stack("gate_up_proj", 2 * f, h, change=lambda one: _parted(one.mT)),
            gate_up_bias=stack("gate_up_proj_bias", 2 * f, change=_parted),
            down=stack("down_proj", h, f, change=lambda one: one.mT),
            down_bias=stack("down_proj_bias", h, change=None),
            shared=None,
            shared_gate=None,
        )

    def _experts(self, at: str, ffn: sizes.Experts) -> Experts:
        h, f, router = self._model.hidden_size, ffn.width, self._model.arithmetic.router
        each = [f"{at}.experts.{number}" for number in range(ffn.n_routed)]
        gate_up = [[(f"{e}.gate_proj.weight", f), (f"{e}.up_proj.weight", f)] for e in each]
        down = [[(f"{e}.down_proj.weight", h)] for e in each]
        shared, gate, correction = None, None, None
        if ffn.shared_width:
            name = "shared_expert" if router.shared_gate else "shared_experts"
            shared = self._mlp(f"{at}.{name}", ffn.shared_width)
            gate = self._linear(f"{at}.shared_expert_gate", 1, h) if router.shared_gate else None
        if router.scoring == "sigmoid":
            rows = [(f"{at}.gate.e_score_correction_bias", ffn.n_routed)]
            correction = self._source.join(rows, std=0.1, wide=True)
        stack, whole = self._source.stack, f"{at}.experts"
        return Experts(
            router=self._linear(f"{at}.gate", ffn.n_routed, h),
            correction=correction,
            gate_up=stack(f"{whole}.gate_up_proj", gate_up, h, std=h**-0.5),
            gate_up_bias=None,
            down=stack(f"{whole}.down_proj", down, f, std=f**-0.5),
            down_bias=None,
            shared=shared,
            shared_gate=gate,
        )


def _apart(rows: Tensor) -> None:
    """Put even rows before odd ones, in place: two neighbours become two halves."""
    rows.copy_(torch.cat((rows[0::2], rows[1::2])))


def _parted(rows: Tensor) -> Tensor:
    """[E, 2 f, ...], even rows of dimension 1 first, which are the gate's."""
    return torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)


def random_weights(model: ModelSpec, seed: int, device: torch.device) -> Weights:
    """Seeded random weights, scaled so that activations keep their size from layer to layer."""
    check_runnable(model, device.type)
    return Builder(model, RandomSource(model, seed, device)).weights()


def weights_from_tensors(
    model: ModelSpec, tensors: Mapping[str, Tensor], device: torch.device
) -> Weights:
    """Weights from tensors under their Hugging Face names.

    Raises:
        Mismatch: a tensor that the config calls for is absent or has another shape.
    """
    return assemble_weights(model, tensors.get, device)


def assemble_weights(
    model: ModelSpec, read: Callable[[str], Tensor | None], device: torch.device
) -> Weights:
    """Copy the tensors that `model` calls for to the device, one by one, into our layout.

    Args:
        read: the tensor of a Hugging Face name, anywhere and in any float dtype; None if absent.

    Raises:
        Mismatch: a tensor that the config calls for is absent or has another shape.
    """
    check_runnable(model, device.type)
    return Builder(model, NamedSource(model, read, device)).weights()

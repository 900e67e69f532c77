"""What decides the numbers of a model and neither its bytes nor its FLOPs.

Only a run reads it. Plans and the hashes of graphs leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.files import STRICT_KEYS


@dataclass(frozen=True, slots=True)
class Router:
    """How a token chooses its experts and what each weighs: softmax over all, then the largest.

    Args:
        normalised: the weights of the chosen experts are divided by their sum.
        shared_gate: a sigmoid of each token weighs its shared expert (Qwen2-MoE).
    """

    __pydantic_config__ = STRICT_KEYS

    normalised: bool = True
    shared_gate: bool = False


MIXTRAL = Router()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The arithmetic of a model's layers; the defaults are those of Llama and Mixtral.

    Args:
        activation: of a gated MLP; an MLP without a gate has ReLU.
        norm_offset: added to the stored weights of RMS norms, which are then kept in 32 bit.
        embedding_scale: factor of a token's embedding.
        attention_scale: factor of the scores; by default 1 / sqrt(head size).
        attention_cap, logit_cap: scores and logits s become `cap * tanh(s / cap)`.
        local_rope_theta: rotary base of layers with a window, where it differs.
    """

    __pydantic_config__ = STRICT_KEYS

    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    local_rope_theta: float | None = None
    router: Router = MIXTRAL


PLAIN = Arithmetic()
"""The arithmetic of a model that asks for nothing else."""

"""What decides the numbers of a model and neither its bytes nor its FLOPs.

Only a run reads it. Plans and the hashes of graphs leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.files import STRICT_KEYS


@dataclass(frozen=True, slots=True)
class Router:
    """How a token chooses its experts, the largest of some scores, and what each weighs.

    Args:
        scoring: softmax of the logits over all experts, or over the chosen ones (gpt-oss), or the
            sigmoid of each, with a correction that counts for the choice alone (DeepSeek-V3).
        normalised: the weights of the chosen experts are divided by their sum.
        scale: factor of the weights.
        n_groups, top_groups: with sigmoids, only the experts of the best groups can be chosen.
        biased: the router and the experts add biases.
        shared_gate: a sigmoid of each token weighs its shared expert (Qwen2-MoE).
    """

    __pydantic_config__ = STRICT_KEYS

    scoring: Literal["all", "chosen", "sigmoid"] = "all"
    normalised: bool = True
    scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1
    biased: bool = False
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class Yarn:
    """Frequency scaling of YaRN (arXiv 2309.00071).

    Args:
        factor: of slow wavelengths.
        fast, slow: turns within `original_max_positions` from which a wavelength is unchanged, and
            up to which it is stretched by `factor`.
        truncate: round the dimensions of both to whole ones.
        magnitude: factor of cosines and sines.
    """

    __pydantic_config__ = STRICT_KEYS

    factor: float
    fast: float
    slow: float
    original_max_positions: int
    truncate: bool
    magnitude: float


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
        yarn: scaling of rotary frequencies.
        sinks: each query head has a score that takes part in its softmax and has no value.
        swiglu_limit: experts clamp gate and rest to it and compute `(up + 1) gate sigmoid(alpha
            gate)` (gpt-oss).
        swiglu_alpha: see there.
        rope_interleaved: stored rows that are rotated together are neighbours (DeepSeek).
    """

    __pydantic_config__ = STRICT_KEYS

    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    local_rope_theta: float | None = None
    yarn: Yarn | None = None
    sinks: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    rope_interleaved: bool = False
    router: Router = MIXTRAL

    @property
    def open_scores(self) -> bool:
        """Whether no fused kernel of attention computes the scores."""
        return self.sinks or self.attention_cap is not None


PLAIN = Arithmetic()
"""The arithmetic of a model that asks for nothing else."""

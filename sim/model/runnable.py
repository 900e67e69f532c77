"""Which models the device kernels can run."""

from __future__ import annotations

from sim.model.spec import ModelSpec

RUNNABLE_FAMILIES = (
    *("opt", "llama", "mistral", "qwen2", "qwen3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3"),
)
"""Families that there are device kernels for; the others can be planned and simulated."""


def why_not_run(model: ModelSpec) -> str | None:
    """The reason, in one sentence, why no device can run plans of this model; None if one can."""
    if model.tensor_parallel > 1:
        return (
            f"the plan is for {model.tensor_parallel} GPUs that share {model.name} (--tp), which "
            "can be planned and simulated but not run: a run needs one GPU."
        )
    if model.family not in RUNNABLE_FAMILIES:
        return (
            f"{model.name} is of family {model.family}, which can be planned and simulated but not "
            f"run; families that run: {', '.join(RUNNABLE_FAMILIES)}."
        )
    if model.not_run:
        return (
            f"{model.name} has {' and '.join(model.not_run)}, which no device kernel computes; it "
            "can be planned and simulated but not run."
        )
    if model.has_stored_weights:
        return (
            f"{model.name} is planned with weights in {model.weight_bits or 'fewer'} bits, and a "
            f"run computes with {model.dtype} ones; plan it with --dequantise."
        )
    return None

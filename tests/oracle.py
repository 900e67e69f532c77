"""What `transformers` computes for small models, to compare ours with."""

from __future__ import annotations

from dataclasses import dataclass

import hf
import torch
from tiny import CPU
from torch import Tensor

from hw import HostCache, prompt_ids, weights_from_tensors
from hw.model.weights import Weights
from sim import Workload, find_hardware
from sim.model.config import model_from_config

SLOW_LINK = find_hardware("kvpr-a100").with_faster("link", 0.25)
"""Slow enough that the LP recomputes some tokens of such short prompts, and loads others."""

TOLERANCE = 1e-4
"""Largest difference relative to the largest magnitude, in 32 bit."""

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 331,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@dataclass
class Oracle:
    """What `transformers` computes, and the same weights in our layout.

    Args:
        kv: for each layer K and V stacked as our cache has them, [S, B, 2, H_kv, D]; of a layer
            with a window those of the last tokens.
        logits: [B, V] of the last step.
        tokens: [B, gen + 1] by its own greedy `generate`.
    """

    weights: Weights
    job: Workload
    prompts: Tensor
    kv: list[Tensor]
    logits: Tensor
    tokens: Tensor


def seeded(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    """A model with weights large enough that no two logits tie and every layer is heard.

    Embeddings are small beside the layers' outputs: a tied model would repeat its input token.
    """
    torch.manual_seed(8)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0.0, 0.2)
    return model


@torch.inference_mode()
def consult(config: hf.PretrainedConfig, job: Workload | None = None) -> Oracle:
    model = seeded(config)
    spec = model_from_config({**model.config.to_dict(), "dtype": "float32"}, "oracle")
    job = job or Workload(
        batch_size=2, prompt_tokens=24 if spec.family == "opt" else 70, gen_tokens=3
    )
    prompts = prompt_ids(spec, job, 3)
    tokens = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=job.gen_tokens + 1,
    )[:, job.prompt_tokens :]
    out = model(prompts, use_cache=True)
    for step in range(job.gen_tokens):
        out = model(tokens[:, step : step + 1], past_key_values=out.past_key_values)
    layers = [
        torch.stack((at.keys, at.values), 2)
        if spec.mla is None  # else keys are latents, and values rotary keys
        else torch.cat((at.keys, at.values), -1)[:, :, None]
        for at in out.past_key_values.layers
    ]
    return Oracle(
        weights=weights_from_tensors(spec, model.state_dict(), CPU),
        job=job,
        prompts=prompts,
        kv=[kv.permute(3, 0, 2, 1, 4) for kv in layers],  # [B, H_kv, 2, S, D] -> [S, B, 2, H_kv, D]
        logits=out.logits[:, -1],
        tokens=tokens,
    )


def assert_equal(mine: Tensor, theirs: Tensor) -> None:
    limit = TOLERANCE * float(theirs.abs().max())
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=limit)


def assert_kv_equal(mine: HostCache, oracle: Oracle, tokens: range) -> None:
    """K and V of `tokens` in every layer, as far as a window has not left them behind."""
    for ours, oracles in zip(mine.kv, oracle.kv, strict=True):
        n_both = min(ours.shape[0], oracles.shape[0])  # both end with the last token
        first = oracle.job.max_tokens - n_both
        rows = slice(max(0, tokens.start - first), tokens.stop - first)
        for part in range(ours.shape[2]):
            assert_equal(ours[-n_both:][rows, :, part], oracles[-n_both:][rows, :, part])

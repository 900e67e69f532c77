"""What decides the numbers of a model and neither its bytes nor its FLOPs.

Only a run reads it. Plans and the hashes of graphs leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """The arithmetic of a model's layers; the defaults are those of Llama and Mixtral."""

    __pydantic_config__ = STRICT_KEYS

    router: Router = MIXTRAL


PLAIN = Arithmetic()
"""The arithmetic of a model that asks for nothing else."""

"""A decode plan: what to load and what to recompute, with its prediction; saved as a file."""

from __future__ import annotations

from dataclasses import dataclass

from planner.decode.lower import SCHEDULES, check_size, lower, replicate
from planner.decode.other_systems import RUNTIME_SYSTEMS, other_system_graph
from planner.decode.split import Residency, StepSplit
from planner.plan_file import Plan
from sim.errors import BadInput
from sim.files import STRICT_KEYS
from sim.graph.tasks import TaskGraph
from sim.machine.availability import ALWAYS, Availability
from sim.machine.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What 10 % more of one part of the machine would save, as fractions of the LP's makespan.

    Args:
        part: `h2d`, `d2h`, `flops`, `hbm` or (where there are any) `host` and `uplink`, as in
            `HardwareProfile.with_faster`.
        saved_by_duals_frac: to first order, from the duals of the LP.
        saved_frac: found by solving the LP again for the faster machine.
    """

    __pydantic_config__ = STRICT_KEYS

    part: str
    saved_by_duals_frac: float
    saved_frac: float


@dataclass(frozen=True, slots=True)
class Offloaded:
    """The fastest split of a KV cache that is wholly in host memory.

    Args:
        way: `load` or `recompute` where a split saves less than 1 %, else `split`.
        recomputed_tokens, attended_tokens: of the median layer in the first step.
    """

    __pydantic_config__ = STRICT_KEYS

    way: str
    makespan_s: float
    recomputed_tokens: int
    attended_tokens: int


@dataclass(frozen=True)
class DecodePlan(Plan, kind="plan"):
    """A split with its prediction, and everything needed to lower and simulate it again.

    Args:
        lp_objective_s: the LP's value at these whole token counts: the longest path through the
            graph, every task alone on its lane. Of several GPUs, with links as fast as when all of
            them copy at once.
        makespan_s: the simulated makespan, sharing and interference included.
        lower_bound_s: no split of this workload on this machine is faster, by the LP.
        sensitivities: what 10 % more of each part of the machine would save; the split of an `lp`
            plan would follow the change, any other is kept.
        bottleneck: the largest of them, as a sentence.
        gpus: GPUs with the same work that share uplinks and host memory: one for each part of the
            model and job.
        resident_x_tokens: for each layer, of how many recomputed tokens X stays on the device;
            empty where of none.
        resident_weight_layers: layers of a column schedule whose weights stay on the device.
        offloaded: the alternative without resident data; None in files of earlier versions.
    """

    remedy = "run `kvoverlap simulate PLAN --plan-out NEW` and use the new plan."

    schedule: str
    steps: tuple[StepSplit, ...]
    makespan_s: float
    lp_objective_s: float
    lower_bound_s: float
    sensitivities: tuple[Sensitivity, ...]
    bottleneck: str
    gpus: int = 1
    resident_x_tokens: tuple[int, ...] = ()
    resident_weight_layers: tuple[int, ...] = ()
    offloaded: Offloaded | None = None
    runtime: Runtime | None = None

    @property
    def availability(self) -> Availability:
        return ALWAYS

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second over all sequences of all GPUs."""
        job = self.workload
        return self.jobs * job.n_batches * job.batch_size * job.gen_tokens / self.makespan_s

    @property
    def jobs(self) -> int:
        """Identical jobs at once."""
        return self.gpus // self.model.tensor_parallel

    def lower(self) -> TaskGraph:
        if self.policy in RUNTIME_SYSTEMS:
            graph = other_system_graph(self.policy, self.model, self.workload, self.residency)
        else:
            split = [step.recomputed_tokens for step in self.steps]
            residency = self.residency
            graph = lower(self.schedule, self.model, self.workload, split, residency=residency)
        return replicate(graph, self.gpus)

    @property
    def residency(self) -> Residency:
        """What stays on the device; a layer whose past tokens all do keeps its whole cache."""
        last, prompt = self.steps[-1], self.workload.prompt_tokens
        pairs = list(zip(last.resident_tokens, last.layer_tokens, strict=True))
        # a layer that reads nothing in the last step is like the others
        all_there = all(count == attended for count, attended in pairs)
        kv = tuple(
            prompt if count == attended and (attended or all_there) else count
            for count, attended in pairs
        )
        x = self.resident_x_tokens or (0,) * len(kv)
        return Residency(kv, x, self.resident_weight_layers)

    @property
    def fully_resident(self) -> bool:
        """Whether the whole cache stays on the device."""
        return all(
            self.residency.holds_whole(layer, self.workload) for layer in range(self.model.n_layers)
        )

    def check(self) -> None:
        """Refuse steps that do not belong to the workload, or a schedule of another version."""
        if self.schedule not in SCHEDULES:
            raise BadInput(f"schedule {self.schedule!r} is not one this version can lower.")
        self.hardware.check_gpus(self.gpus)
        check_size(self.model, self.workload, self.gpus)
        if len(self.steps) != self.workload.gen_tokens:
            raise BadInput(
                f"steps must hold {self.workload.gen_tokens} entries, one per generated token, "
                f"not {len(self.steps)}."
            )
        for number, step in enumerate(self.steps):
            if (step.step, step.context_tokens) != (number, self.workload.context_tokens(number)):
                raise BadInput(f"steps[{number}] does not belong to this workload.")
            if len(step.resident_tokens) != self.model.n_layers:
                raise BadInput(
                    f"steps[{number}] must hold the tokens of {self.model.n_layers} layers, not of "
                    f"{len(step.resident_tokens)}."
                )
            attended = tuple(
                self.model.layer_context(layer, step.context_tokens)
                for layer in range(self.model.n_layers)
            )
            if step.layer_tokens != attended:
                pairs = enumerate(zip(step.layer_tokens, attended, strict=True))
                layer = next(at for at, (tokens, needed) in pairs if tokens != needed)
                raise BadInput(
                    f"steps[{number}], layer {layer}: recomputed, loaded and resident tokens add "
                    f"up to {step.layer_tokens[layer]} and must add up to {attended[layer]}."
                )
            residency = self.residency
            expected = tuple(
                tokens
                if residency.holds_whole(layer, self.workload)
                else residency.kv_tokens[layer]
                for layer, tokens in enumerate(attended)
            )
            if step.resident_tokens != expected:
                raise BadInput(
                    f"steps[{number}]: resident_tokens of a layer must be the same in every step, "
                    "or all past tokens in every step."
                )

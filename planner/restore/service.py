"""Services whose restores are planned, or done as a runtime does them."""

from __future__ import annotations

from dataclasses import replace

from planner.restore.plan import token_counts
from planner.restore.planner import RestorePlanner
from planner.runtime import restore_machine
from sim.errors import BadInput
from sim.graph.jobs import KV, KV_AND_X
from sim.lanes import COMPUTE, H2D
from sim.machine.profile import HardwareProfile
from sim.machine.runtime import Runtime
from sim.model.spec import ModelSpec
from sim.service import PLANNED, Engine, Service, ServiceCosts, ServiceSettings, SoloRestore

LOAD_ONLY = "load-only"


class ServicePlans:
    """Restores by one policy, each planned when it is first asked for.

    Args:
        costs: of the instances; X is projected where they store it.
        policy: of `RESTORE_POLICIES`.
        by_layer: `load-only` loads layer after layer.
    """

    def __init__(self, costs: ServiceCosts, policy: str, by_layer: bool = False) -> None:
        self._costs, self._policy, self._by_layer = costs, policy, by_layer
        self._known: dict[tuple[int, int, str], SoloRestore] = {}

    def solo(self, prompt: int, cached: int, tier: str) -> SoloRestore:
        """The restore of a prompt whose first `cached` tokens are in a tier."""
        asked = (prompt, cached, tier)
        if asked not in self._known:
            self._known[asked] = self._plan(*asked)
        return self._known[asked]

    def _plan(self, prompt: int, cached: int, tier: str) -> SoloRestore:
        costs = self._costs
        request = costs.request(prompt, cached, tier)
        planner = RestorePlanner(
            costs.model,
            costs.hardware,
            request,
            engine="auto",
            cached_data=KV_AND_X if costs.with_x else KV,
            by_layer=self._by_layer,
        )
        timeline = planner.choice(self._policy).timeline
        busy: dict[str, float] = {}
        link_end_s, loaded_bytes = 0.0, 0
        spans = zip(timeline.graph.tasks, timeline.start_s, timeline.end_s, strict=True)
        for task, start_s, end_s in spans:
            busy[task.lane] = busy.get(task.lane, 0.0) + end_s - start_s
            if task.lane != COMPUTE:
                link_end_s = max(link_end_s, end_s)
            if task.lane == H2D:
                loaded_bytes += task.bytes
        computed = token_counts(timeline, request)["computed_tokens"]
        return SoloRestore(
            timeline.makespan_s, tuple(busy.items()), link_end_s, loaded_bytes, computed
        )


def plans_of(costs: ServiceCosts, engine: Engine) -> ServicePlans | None:
    """Plans for an engine; None for one that needs none."""
    if engine.policy in PLANNED or engine.by_layer:
        return ServicePlans(costs, engine.policy, engine.by_layer)
    return None


def make_service(
    settings: ServiceSettings,
    model: ModelSpec,
    hardware: HardwareProfile,
    block_tokens: int,
    runtime: Runtime | None = None,
) -> Service:
    """The service of some settings, with the plans that its policy needs.

    Args:
        model: one GPU's part.
        block_tokens: of the trace.
        runtime: does the loads, with its copies, token budget and host time. That around a request
            uses no GPU and delays only the request.

    Raises:
        BadInput: the runtime serves no prefixes.
        KvOverlapError: as `ServiceSettings.service`.
    """
    if runtime is not None:
        if not runtime.serves and not runtime.plans_itself:
            raise BadInput(
                f"--runtime {runtime.name} keeps no cache of prefixes for later requests; use "
                "vllm, lmcache or sglang-hicache."
            )
        engine = replace(
            settings.engine,
            policy=settings.engine.policy if runtime.plans_itself else LOAD_ONLY,
            by_layer=runtime.restore.value == "by-layer",
            request_s=runtime.request_s.value,
            decode_s=runtime.step_s.value,
        )
        budget = int(runtime.step_tokens.value) or settings.chunk_tokens
        settings = replace(settings, engine=engine, chunk_tokens=budget)
        at_once = replace(runtime, request_s=replace(runtime.request_s, value=0.0))
        hardware = restore_machine(at_once, hardware, model)
    return settings.service(model, hardware, block_tokens, plans_of)

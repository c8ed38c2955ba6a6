"""How the plan is reported to the user: one line when a run begins, a refusal with advice where it cannot fit, or the whole plan."""

from collections.abc import Iterator

from lingact.config.jobs import AnalyzeConfig, JobConfig
from lingact.errors import UserError
from lingact.models.sizes import sizes_of
from lingact.planning.hardware import LIBRARIES, UTILISATION, Hardware, look
from lingact.planning.inputs import Number
from lingact.planning.memory import Need
from lingact.planning.plan import GB, Plan, advice, make_plan
from lingact.planning.work import Pass
from lingact.runtime.terminal import note, show

TINY = 100e6
"""Bytes of weights below which a run begins without a plan."""
_ANYWAY = "To start it all the same: plan=false"


def begin(config: JobConfig) -> None:
    """Say in one line what a run will need, unless its model is tiny, its sizes are not known, or plan=false.

    Raises:
        UserError: it cannot fit; with overrides that need less.
    """
    if config.plan == "off" or _without_model(config):
        return
    found = sizes_of(config.model)
    if found is None or found[0].weights * (4 if config.model.dtype == "float32" else 2) < TINY:
        return
    plan = make_plan(config)
    if plan is None:
        return
    hardware = look(config.device, {config.model.dtype, "float32"}, (found[0].d_model, found[0].d_mlp))
    lacking = hardware.lacks(plan.memory)
    if lacking:
        raise UserError("\n".join([*_refusal(lacking, hardware, plan), *(f"  {line}" for line in advice(config, hardware)), _ANYWAY]))
    needed = hardware.needed(plan.memory).items()
    memory = ", ".join(f"{size / GB:.1f} of the {what}'s {there / GB:.1f} GB" for what, (size, there) in needed)
    note(f"about {memory} on {hardware.name}, {_duration(_seconds(plan, hardware, config))} (estimates; plan=true shows how they are made)")


def _without_model(config: JobConfig) -> bool:
    """Whether the job is an analysis of existing statistics."""
    return isinstance(config, AnalyzeConfig) and bool(config.stats or config.compare)


def _refusal(lacking: dict[str, tuple[Number, Number]], hardware: Hardware, plan: Plan) -> Iterator[str]:
    for what, (needed, there) in lacking.items():
        yield (
            f"this run would need about {needed / GB:.1f} GB of memory of the {what} ({hardware.name}), which has {there / GB:.1f} GB; its largest "
            f"phase: {plan.memory.largest_phase}"
        )
    yield "These overrides need less (with the peak that is left):"


def _seconds(plan: Plan, hardware: Hardware, config: JobConfig) -> Number:
    return sum(hardware.seconds(work, config.model.dtype) for work in plan.passes)


def _duration(seconds: Number) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.0f} h"


def print_plan(config: JobConfig) -> None:
    """Print the whole plan, whether or not the run fits."""
    if _without_model(config):
        note("no plan: the job reads existing statistics and loads no model")
        return
    plan = make_plan(config)
    if plan is None:
        note(
            f"no plan: how large '{config.model.name}' or its SAEs are is not known before they are downloaded. Download the model's config.json "
            f"(hf download {config.model.name} config.json), and give sae.measuring.width"
        )
        return
    found = sizes_of(config.model)
    assert found is not None
    try:
        hardware = look(config.device, {config.model.dtype, "float32"}, (found[0].d_model, found[0].d_mlp))
    except UserError as error:
        note(str(error))
        hardware = None
    memory = plan.memory
    rows = [_row("all the time", need) for need in memory.device]
    rows += [_row(phase, need) for phase, needs in memory.phases.items() for need in needs]
    rows += [_row("in host memory, at first", need) for need in memory.sampling]
    rows += [_row("in host memory", need) for need in [*memory.host, Need("Python and libraries", LIBRARIES, "measured")]]
    show(rows, title=f"Memory, {config.model.name}")
    show([_pass_row(work, hardware, config) for work in plan.passes], title="Passes")
    if hardware is not None:
        verdicts = [_verdict(what, *sizes) for what, sizes in hardware.needed(memory).items()]
        show(verdicts, title=f"On {hardware.name}, at the peak ({memory.largest_phase})")
        share = f"{UTILISATION[hardware.kind]:.0%} of the speed of a matrix product here, as measured now"
        note(f"about {_duration(_seconds(plan, hardware, config))} in all, at {share}")
    note(f"tokens: {plan.text}")
    if hardware is not None and hardware.lacks(memory):
        note("these overrides need less (with the peak that is left): " + "; ".join(advice(config, hardware)))


def _verdict(what: str, needed: Number, there: Number) -> dict[str, object]:
    verdict = "it fits" if needed <= there else "DOES NOT FIT"
    return {"memory of": what, "GB needed": f"{needed / GB:.1f}", "GB there": f"{there / GB:.1f}", "verdict": verdict}


def _row(when: str, need: Need) -> dict[str, object]:
    return {"when": when, "what": need.what, "GB": f"{need.size / GB:.2f}", "how it is known": need.how}


def _pass_row(work: Pass, hardware: Hardware | None, config: JobConfig) -> dict[str, object]:
    row: dict[str, object] = {"pass": work.what, "tokens": f"{work.tokens:,.0f}", "TFLOP model": f"{work.model / 1e12:,.1f}"}
    row |= {"TFLOP SAEs": f"{work.single / 1e12:,.1f}"}
    return row | ({"about": _duration(hardware.seconds(work, config.model.dtype))} if hardware else {})

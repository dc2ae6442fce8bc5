"""A solver state as named tensors and text, and back: one form for checkpoint, hand-off, preemption and resume."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from services.denoiser.plan import STATE_SCHEMA, Plan
from services.denoiser.schedule import Solver
from services.denoiser.solvers import SolverState, history_length


class StateMismatch(ValueError):
    """The state belongs to another model, schedule, shape or version."""


def state_tensors(state: SolverState) -> dict[str, torch.Tensor]:
    """The state's tensors by name, float32 [1, C, T, H, W]: `x`, `x_last` and `denoised.0`, oldest first."""
    tensors = {"x": state.x}
    if state.x_last is not None:
        tensors["x_last"] = state.x_last
    return tensors | {f"denoised.{i}": tensor for i, tensor in enumerate(state.denoised)}


def state_metadata(state: SolverState, plan: Plan) -> dict[str, str]:
    """What goes with the tensors: schema version, next step, order of the last step, fingerprint and grouping."""
    return {
        "schema_version": str(STATE_SCHEMA),
        "next_step": str(state.step),
        "order": str(state.order),
        "fingerprint": plan.fingerprint,
        "guidance_batched": "1" if plan.batched else "0",
    }


def continued(plan: Plan, metadata: Mapping[str, str]) -> Plan:
    """`plan` in the grouping of prompts that its state was made in. Raises `ValueError` for none."""
    batched = metadata.get("guidance_batched")
    if batched not in ("0", "1"):
        raise ValueError("guidance_batched must be 0 or 1")
    return replace(plan, batched=batched == "1")


def read_state(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], plan: Plan) -> SolverState:
    """The state that continues `plan` at its first step.

    Raises `StateMismatch` for another version, run or step, and `ValueError` for tensors that are not such a state.
    """
    if metadata.get("schema_version") != str(STATE_SCHEMA):
        raise StateMismatch(f"schema_version must be {STATE_SCHEMA}, not {metadata.get('schema_version')}")
    if metadata.get("fingerprint") != plan.fingerprint:
        raise StateMismatch("the state belongs to another model, schedule, solver, guidance or shape")
    if metadata.get("next_step") != str(plan.first_step):
        raise StateMismatch(f"the state continues at step {metadata.get('next_step')}, not {plan.first_step}")
    order = metadata.get("order", "")
    if order not in ("1", "2"):
        raise ValueError("order must be 1 or 2")
    expected = {"x", *(f"denoised.{i}" for i in range(history_length(plan.settings.solver, plan.first_step)))}
    if plan.settings.solver is Solver.UNIPC:
        expected.add("x_last")
    if set(tensors) != expected:
        raise ValueError(
            f"a state of {plan.settings.solver} at step {plan.first_step} has {', '.join(sorted(expected))}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32")
        if tuple(tensor.shape) != plan.latents.batch:
            raise ValueError(f"{name} must have shape {list(plan.latents.batch)}, not {list(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite")
    return SolverState(
        step=plan.first_step,
        x=tensors["x"],
        x_last=tensors.get("x_last"),
        denoised=tuple(tensors[f"denoised.{i}"] for i in range(len(tensors)) if f"denoised.{i}" in tensors),
        order=int(order),
    )

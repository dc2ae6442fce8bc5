"""Solvers of dx/dsigma = v(x, sigma): pure functions from a state and a velocity to the next state."""

from services.denoiser.schedule import Solver
from services.denoiser.solvers import dpmpp_2m, euler, unipc
from services.denoiser.solvers.state import SolverState, SolverStep

__all__ = ["SolverState", "SolverStep", "history_length", "solver_step"]


def solver_step(solver: Solver) -> SolverStep:
    """The step function of `solver`."""
    return {Solver.EULER: euler.step, Solver.UNIPC: unipc.step, Solver.DPMPP_2M: dpmpp_2m.step}[solver]


def history_length(solver: Solver, step: int) -> int:
    """How many predictions of x_0 the solver's state holds before step `step`."""
    return min(step, {Solver.EULER: 0, Solver.UNIPC: unipc.ORDER, Solver.DPMPP_2M: 1}[solver])

"""Neural ODEs in TensorFlow with exact gradients at minimal memory."""

import importlib

from tfsymadj import _backend, callbacks, controls, layers  # noqa: F401 - the backend's check comes first
from tfsymadj.dynamics.split import Split
from tfsymadj.events import Event
from tfsymadj.gradients import (
    Backprop,
    ContinuousAdjoint,
    Gradient,
    NoGradient,
    Reversible,
    SolveCheckpoint,
    StepCheckpoint,
    SymplecticAdjoint,
    no_gradient,
)
from tfsymadj.layers import ODELayer
from tfsymadj.methods import METHODS, ButcherTableau, Newton
from tfsymadj.sensitivities import Sensitivities, jvp, sensitivities
from tfsymadj.solution import Interpolant, Occurrence, Solution, Stats, Status
from tfsymadj.solve import odeint, solve
from tfsymadj.steady_state import SteadyState, steady_state
from tfsymadj.steps import ConstantSteps, Controller, PIController, Proposal

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Backprop",
    "ButcherTableau",
    "ConstantSteps",
    "ContinuousAdjoint",
    "Controller",
    "Event",
    "Gradient",
    "Interpolant",
    "Newton",
    "NoGradient",
    "ODELayer",
    "Occurrence",
    "PIController",
    "Proposal",
    "Reversible",
    "Sensitivities",
    "Solution",
    "SolveCheckpoint",
    "Split",
    "Stats",
    "Status",
    "SteadyState",
    "StepCheckpoint",
    "SymplecticAdjoint",
    "callbacks",
    "controls",
    "jvp",
    "layers",
    "no_gradient",
    "odeint",
    "sensitivities",
    "solve",
    "steady_state",
]


def __getattr__(name):
    # On demand: the first one imports TensorFlow Probability, the others are names of before.
    if name in ("bijectors", "controllers", "tableaus"):
        return importlib.import_module(f"tfsymadj.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, "bijectors"])

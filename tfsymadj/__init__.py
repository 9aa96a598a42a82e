"""Neural ODEs in TensorFlow with exact gradients at minimal memory."""

import importlib

from tfsymadj import layers
from tfsymadj.controllers import ConstantSteps, Controller, PIController
from tfsymadj.gradients import (
    Backprop,
    ContinuousAdjoint,
    Gradient,
    SolveCheckpoint,
    StepCheckpoint,
    SymplecticAdjoint,
)
from tfsymadj.layers import ODELayer
from tfsymadj.solution import Solution, Stats, Status
from tfsymadj.solve import odeint, solve
from tfsymadj.tableaus import METHODS, ButcherTableau

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Backprop",
    "ButcherTableau",
    "ConstantSteps",
    "ContinuousAdjoint",
    "Controller",
    "Gradient",
    "ODELayer",
    "PIController",
    "Solution",
    "SolveCheckpoint",
    "Stats",
    "Status",
    "StepCheckpoint",
    "SymplecticAdjoint",
    "layers",
    "odeint",
    "solve",
]


def __getattr__(name):
    # On demand: it imports TensorFlow Probability.
    if name == "bijectors":
        return importlib.import_module("tfsymadj.bijectors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

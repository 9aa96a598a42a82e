"""Neural ODEs in TensorFlow with exact gradients at minimal memory."""

from tfsymadj import layers
from tfsymadj.controllers import ConstantSteps, Controller, PIController
from tfsymadj.gradients import Backprop, SymplecticAdjoint
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
    "Controller",
    "ODELayer",
    "PIController",
    "Solution",
    "Stats",
    "Status",
    "SymplecticAdjoint",
    "layers",
    "odeint",
    "solve",
]

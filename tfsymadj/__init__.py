"""Neural ODEs in TensorFlow with exact gradients at minimal memory."""

from tfsymadj.controllers import ConstantSteps, Controller, PIController
from tfsymadj.gradients import Backprop, SymplecticAdjoint
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
    "PIController",
    "Solution",
    "Stats",
    "Status",
    "SymplecticAdjoint",
    "odeint",
    "solve",
]

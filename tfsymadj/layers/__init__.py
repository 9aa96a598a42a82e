"""Keras layers: the neural ODE, and layers to make its dynamics of."""

from tfsymadj.layers.cde_layers import CDELayer, ControlledDynamics
from tfsymadj.layers.energy_layers import (
    EnergyDynamics,
    HamiltonianDynamics,
    PeriodicDifference,
    SecondOrderDynamics,
)
from tfsymadj.layers.ode_layer import ODELayer
from tfsymadj.layers.time_layers import ConcatSquash, ConcatTime, RescaledTime, TimeSequential

__all__ = [
    "CDELayer",
    "ConcatSquash",
    "ConcatTime",
    "ControlledDynamics",
    "EnergyDynamics",
    "HamiltonianDynamics",
    "ODELayer",
    "PeriodicDifference",
    "RescaledTime",
    "SecondOrderDynamics",
    "TimeSequential",
]

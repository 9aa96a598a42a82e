"""Keras layers: the neural ODE, and layers for time-dependent dynamics called as `(t, y)`."""

from tfsymadj.layers.ode_layer import ODELayer
from tfsymadj.layers.time_layers import ConcatSquash, ConcatTime, RescaledTime, TimeSequential

__all__ = ["ConcatSquash", "ConcatTime", "ODELayer", "RescaledTime", "TimeSequential"]

"""How the forward loop is differentiated: interchangeable objects with a `solve` method."""

import functools

from tfsymadj.gradients.backprop import Backprop
from tfsymadj.gradients.continuous_adjoint import ContinuousAdjoint
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.gradients.no_gradient import NoGradient, gradient_is_wanted, no_gradient
from tfsymadj.gradients.reversible import Reversible
from tfsymadj.gradients.solve_checkpoint import SolveCheckpoint
from tfsymadj.gradients.step_checkpoint import StepCheckpoint
from tfsymadj.gradients.symplectic_adjoint import SymplecticAdjoint

#: Names for `solve(gradient=...)`.
GRADIENTS = {
    "symplectic_adjoint": SymplecticAdjoint,
    "backprop": Backprop,
    "baseline": SolveCheckpoint,
    "aca": StepCheckpoint,
    "continuous_adjoint": ContinuousAdjoint,
    "reversible": Reversible,
}


@functools.cache
def _by_name(name):
    """One object for all solves, which a cache finds by its identity."""
    return GRADIENTS[name]()


def get_gradient(gradient):
    """A gradient object from its name; objects are returned as they are.

    Inside of `no_gradient` it is `NoGradient` whatever is asked for, in the same scheme.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(gradient, str) and gradient in GRADIENTS:
        gradient = _by_name(gradient)
    if isinstance(gradient, Gradient):
        if gradient_is_wanted():
            return gradient
        return NoGradient(gradient if gradient.discretises else None)
    raise ValueError(
        f"`gradient` must be one of {sorted(GRADIENTS)}, or an object such as "
        f"`SymplecticAdjoint()`. Received: {gradient!r}"
    )


__all__ = [
    "GRADIENTS",
    "Backprop",
    "ContinuousAdjoint",
    "Gradient",
    "NoGradient",
    "Reversible",
    "SolveCheckpoint",
    "StepCheckpoint",
    "SymplecticAdjoint",
    "get_gradient",
    "gradient_is_wanted",
    "no_gradient",
]

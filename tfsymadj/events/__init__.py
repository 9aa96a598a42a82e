"""Events: roots of functions along a solution, exact and differentiable."""

from tfsymadj.events.event import Event

__all__ = ["Event"]

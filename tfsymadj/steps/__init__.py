"""How long a step is: `Controller`, and those that come with the package."""

from tfsymadj.steps.controller import Controller, Proposal
from tfsymadj.steps.given import ConstantSteps, TabulatedSteps
from tfsymadj.steps.pi import PIController

__all__ = ["ConstantSteps", "Controller", "PIController", "Proposal", "TabulatedSteps"]

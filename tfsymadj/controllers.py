"""The public names of `steps`, where those who derive controllers look for them."""

from tfsymadj.steps import ConstantSteps, Controller, PIController, Proposal

__all__ = ["ConstantSteps", "Controller", "PIController", "Proposal"]

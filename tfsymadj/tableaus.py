"""The public names of `methods`, where those who declare tables look for them."""

from tfsymadj.methods import METHODS, ButcherTableau

__all__ = ["METHODS", "ButcherTableau"]

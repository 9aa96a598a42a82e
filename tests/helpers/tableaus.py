"""Tables of methods that are none of the package."""

import dataclasses

import numpy as np

from tfsymadj import METHODS
from tfsymadj.methods.interpolation import nested

# A correct tableau for tests to spoil.
GOOD = dict(
    name="mine",
    order=2,
    c=(0, 1),
    a=((), (1,)),
    b=(0.5, 0.5),
    b_error=(-0.5, 0.5),
    embedded_order=1,
)


def _extended():
    """bosh3 with a slope in the middle of the step, for outputs alone, and two error estimates."""
    tableau = METHODS["bosh3"]
    cubic, powers = np.array(tableau.dense), np.arange(1, 4)
    # Hermite interpolation there, and how far the new slope is from its derivative.
    row, derivative = cubic @ 0.5**powers, cubic @ (powers * 0.5 ** (powers - 1))
    return dataclasses.replace(
        tableau,
        name="extended",
        c=(*tableau.c, 1 / 2),
        a=(*tableau.a, tuple(row)),
        dense=nested(tableau.b, (*-derivative, 1.0)),
        b_coarse=(tableau.b[0] - 1.0, *tableau.b[1:]),
        coarse_order=1,
    )


EXTENDED = _extended()

"""Continuous extensions as tables."""

import dataclasses

import numpy as np
import pytest
from scipy.integrate import DOP853

from tfsymadj import METHODS, ButcherTableau
from tfsymadj.methods.interpolation import hermite
from tfsymadj.methods.order_conditions import first_dense_violation

CLAIMED = dict(dopri5=4, tsit5=4, bosh3=3, rk4=3, heun=2, euler=1, dopri8=3, dop853=7)

#: Of an additive method no stage is the step's end.
KINKED = ("kencarp4",)


@pytest.mark.parametrize("name", METHODS)
def test_ends_and_slopes(name):
    """y and y' are continuous from step to step."""
    extended = METHODS[name].with_interpolant()
    dense = np.array(extended.dense)
    powers = np.arange(1, dense.shape[1] + 1)
    first, last = np.eye(len(dense))[[0, extended.num_rows - 1]]
    np.testing.assert_allclose(dense.sum(1), extended.b_vector, atol=1e-13)
    if name not in KINKED:
        np.testing.assert_allclose(dense[:, 0], first, atol=1e-13)
        np.testing.assert_allclose(dense @ powers, last, atol=1e-11)
        assert extended.fsal or extended.stiffly_accurate
    assert extended.dense_order == CLAIMED.get(name, min(METHODS[name].order, 3))


@pytest.mark.parametrize("name", METHODS)
def test_claimed_order_is_the_highest(name):
    extended = METHODS[name].with_interpolant()
    dense = np.array(extended.dense)
    assert first_dense_violation(extended.a_matrix, dense, extended.dense_order) is None
    assert first_dense_violation(extended.a_matrix, dense, extended.dense_order + 1) is not None


def test_dop853_is_that_of_scipy():
    solver = DOP853(lambda t, y: [y[1], -np.sin(t * y[0])], 0.0, [1.0, 0.5], 3.0, first_step=0.8)
    solver.step()
    inside, h = solver.dense_output(), solver.step_size
    for theta in np.linspace(0.0, 1.0, 9):
        weights = np.array(METHODS["dop853"].dense) @ theta ** np.arange(1, 8)
        actual = [1.0, 0.5] + h * weights @ solver.K_extended
        np.testing.assert_allclose(actual, inside(theta * h), atol=1e-13)


def test_a_row_is_added_where_there_is_none():
    extended = METHODS["rk4"].with_interpolant()
    assert (extended.num_rows, extended.stages) == (5, 4)
    assert extended.without_error().b == METHODS["rk4"].b
    assert METHODS["dopri5"].with_interpolant() is METHODS["dopri5"]


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(dense=((1, 0), (0, 1), (0, 0))), r"`dense\[0\]` must sum to `b\[0\]`"),
        (dict(dense=((1,), (0, 0), (0,))), "rows of one length"),
        (dict(dense=((1, 0),)), "`dense` must have 3 entries"),
        (dict(dense_order=2), "without `dense`"),
        (dict(dense=hermite((0.5, 0.5, 0.0)), dense_order=3), "not of order 3.*theta"),
    ],
)
def test_wrong_extensions(changed, message):
    options = dict(
        name="heun", order=2, c=(0, 1, 1), a=((), (1,), (0.5, 0.5)), b=(0.5, 0.5, 0), **changed
    )
    with pytest.raises(ValueError, match=message):
        ButcherTableau(**options)


def test_extension_without_a_last_slope():
    tableau = dataclasses.replace(METHODS["euler"], dense=((1.0,),), dense_order=1)
    with pytest.raises(ValueError, match="needs a FSAL row"):
        tableau.with_interpolant()

"""Tolerances and norms of errors."""

import numpy as np
import pytest
from helpers.problems import PENDULUM0, pendulum

import tfsymadj


def test_tolerances_as_nests_and_arrays():
    def dynamics(t, y):
        return {"a": pendulum(t, y["a"]), "b": -y["b"]}

    y0 = {"a": PENDULUM0, "b": np.ones([3, 2])}
    times = [0.0, 3.0]

    def steps(**tolerances):
        return int(tfsymadj.solve(dynamics, y0, times, **tolerances).stats.num_steps)

    scalar = steps(rtol=1e-7, atol=1e-7)
    nest = {"a": 1e-7, "b": 1e-7}
    assert steps(rtol=nest, atol=nest) == scalar
    arrays = {"a": np.full(2, 1e-7), "b": np.full([3, 1], 1e-7)}
    assert steps(rtol=arrays, atol=arrays) == scalar
    # A part that doesn't matter makes the steps longer, a mixed-up one does not.
    assert steps(rtol={"a": 1.0, "b": 1e-7}, atol={"a": 1.0, "b": 1e-7}) < scalar
    only_b = tfsymadj.solve(lambda t, y: -y, y0["b"], times, rtol=1e-7, atol=1e-7)
    assert steps(rtol=0.0, atol={"a": 1e30, "b": 1e-7}) >= int(only_b.stats.num_steps) - 2


def test_tolerance_for_each_entry():
    y0 = np.array([1.0, 1.0])
    rates = np.array([1.0, 30.0])

    def steps(atol):
        solution = tfsymadj.solve(
            lambda t, y: -rates * y, y0, [0.0, 0.5], rtol=0.0, atol=atol, max_steps=4000
        )
        return int(solution.stats.num_steps)

    fast, slow = steps([1e30, 1e-9]), steps([1e-9, 1e30])
    assert fast > 2 * slow


def test_wrong_nest_of_tolerances():
    y0 = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match="`rtol` and `atol`.*Received: "):
        tfsymadj.solve(lambda t, y: y, y0, [0.0, 1.0], rtol={"a": 1e-3})

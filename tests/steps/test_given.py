"""Steps that do not depend on the solution."""

import math

import numpy as np
import pytest
from helpers.problems import PENDULUM0, pendulum

import tfsymadj
from tfsymadj import METHODS


@pytest.mark.parametrize(
    "step_size, times, steps",
    [
        (0.1, [0.0, 1.0], 10),  # 1.0 / 0.1 and sums of 0.1 are whole but for rounding
        (0.1, [0.0, 0.3], 3),
        (0.1, [0.2, 0.3, 0.7], 5),
        (0.3, [0.0, 1.0], 4),
        (5.0, [0.0, 1.0], 1),
        (0.25, [1.0, 0.0, -0.1], 5),
        (1e-3, [0.0, 1.0], 1000),
    ],
)
def test_step_size_is_an_upper_bound(step_size, times, steps):
    solution = tfsymadj.solve(
        lambda t, y: -y, np.ones(1), times, method="euler", step_size=step_size
    )
    assert int(solution.stats.num_steps) == steps
    np.testing.assert_allclose(
        solution.y[-1, 0],
        np.prod([
            (1 - (b - a) / n) ** n
            for a, b in zip(times, times[1:])
            for n in [math.ceil(abs(b - a) / step_size - 1e-9)]
        ]),
        rtol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("method", [name for name, x in METHODS.items() if x.explicit])
def test_counts_of_fixed_steps(method):
    stats = tfsymadj.solve(pendulum, PENDULUM0, [0.0, 0.5, 1.0], method=method, num_steps=3).stats
    n, s = 6, METHODS[method].stages
    assert int(stats.num_steps) == int(stats.num_accepted) == n
    assert int(stats.num_rejected) == 0
    assert int(stats.num_evaluations) == n * s

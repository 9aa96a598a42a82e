"""Traces of Jacobians."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.flows import Field, normal, points
from helpers.gradients import relative_error
from helpers.modes import MODES, partly_slow, run, slow

from tfsymadj import Backprop
from tfsymadj.bijectors import CNF, ExactTrace, HutchinsonTrace, HutchPlusPlusTrace
from tfsymadj.bijectors.traces import Trace


class Probes(Trace):
    """Unit vectors of the event by the documented methods: exact for two dimensions."""

    def __init__(self, scale):
        self.scale = scale

    def get_config(self):
        return {"scale": self.scale}

    def draw(self, seed, shape, dtype):
        return (tf.ones(shape, dtype),)

    def __call__(self, field, y, noise, with_norm=False):
        with tf.GradientTape() as tape:
            tape.watch(y)
            dy = field(y)
            total = tf.reduce_sum(dy * noise[0])
        slope = tape.gradient(total, y)
        return dy, self.scale * tf.reduce_sum(slope * noise[0], 1), None


def test_own_trace():
    found = []
    for scale in (1.0, 2.0):
        flow = CNF(lambda t, y: 0.5 * y, trace=Probes(scale), method="rk4", num_steps=5)
        found.append(float(flow.forward_log_det_jacobian(tf.ones([1, 2]))[0]))
    np.testing.assert_allclose(found, [1.0, 2.0], rtol=1e-6)
    assert Probes(1.0) == Probes(1.0) != Probes(2.0)
    assert repr(Probes(1.0)) == "Probes(scale=1.0)"


FIXED = dict(method="heun", num_steps=3)
TIGHT = dict(method="dopri5", rtol=1e-9, atol=1e-9)
TRACE_OBJECTS = [
    ExactTrace(),
    HutchinsonTrace(),
    HutchinsonTrace("gaussian", 2),
    HutchPlusPlusTrace(3),
]


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
@pytest.mark.parametrize("trace", [*TRACE_OBJECTS[:2], *map(slow, TRACE_OBJECTS[2:])], ids=repr)
def test_gradients_are_those_of_backprop(trace, mode):
    """Of log_prob and the regularizers, for the input, the condition and the variables."""
    field, y = Field(), points(4, 3)
    condition = points(4, 1, seed=2)
    regularizers = () if isinstance(trace, HutchPlusPlusTrace) else (
        "kinetic_energy", "jacobian_norm"
    )  # fmt: skip

    def gradients(gradient):
        flow = CNF(
            field, (1.0, 0.0), trace=trace, seed=3, regularizers=regularizers, gradient=gradient,
            **FIXED,
        )  # fmt: skip
        with tf.GradientTape() as tape:
            tape.watch([y, condition])
            solution = flow.inverse_solution(y, condition=condition)
            value = tf.reduce_sum(normal().log_prob(solution.y) + solution.log_det_jacobian)
            for name in regularizers:
                value += tf.reduce_sum(
                    tf.cos(tf.range(4.0, dtype=tf.float64)) * getattr(solution, name)
                )
        return tape.gradient(value, [y, condition, *field.trainable_variables])

    found = run(lambda: gradients("symplectic_adjoint"), mode)
    expected = run(lambda: gradients(Backprop()), "graph")
    for a, b in zip(found, expected):
        assert relative_error(a, b) < 1e-10


@pytest.mark.parametrize("trace", [TRACE_OBJECTS[1], *map(slow, TRACE_OBJECTS[2:])], ids=repr)
def test_noise_is_a_function_of_the_seed(trace):
    field, x = Field(), points(4, 3)

    def compute(**keywords):
        flow = CNF(field, trace=trace, seed=7, **FIXED)
        return flow.forward_log_det_jacobian(x, **keywords)

    first = compute().numpy()
    for mode in MODES:
        assert relative_error(run(compute, mode), first) < 1e-13
    assert relative_error(compute(seed=7), first) == 0.0
    assert relative_error(compute(seed=tf.constant([7, 0])), first) == 0.0
    assert relative_error(compute(seed=8), first) > 1e-3


def test_noise_is_the_same_in_both_directions():
    flow = CNF(Field(), trace="hutchinson", seed=1, **TIGHT)
    x = points(4, 3)
    fldj = flow.forward_log_det_jacobian(x)
    y = tf.identity(flow.forward(x))
    assert relative_error(-flow.inverse_log_det_jacobian(y), fldj) < 1e-7


@pytest.mark.parametrize("trace", TRACE_OBJECTS[1:], ids=repr)
def test_estimates_are_unbiased(trace):
    """The mean of 4000 samples, within five standard errors."""
    field = Field()
    x = tf.tile(points(1, 3), [4000, 1])
    options = dict(method="euler", num_steps=1)
    estimates = CNF(field, trace=trace, **options).forward_log_det_jacobian(x).numpy()
    exact = float(CNF(field, **options).forward_log_det_jacobian(x[:1])[0])
    assert np.std(estimates) > 0.0
    assert abs(np.mean(estimates) - exact) < 5 * np.std(estimates) / np.sqrt(4000)


def test_hutch_plus_plus_is_exact_for_low_rank():
    matrix = np.outer([1.0, 2.0, -1.0, 0.5], [0.3, 0.2, -0.7, 1.1])
    field, x = lambda t, y: y @ matrix, points(5, 4)
    options = dict(method="euler", num_steps=1)
    exact = np.full(5, np.trace(matrix))
    for trace in (HutchPlusPlusTrace(3), HutchPlusPlusTrace(6)):
        found = CNF(field, trace=trace, **options).forward_log_det_jacobian(x)
        assert relative_error(found, exact) < 1e-12
    rough = CNF(field, trace=HutchinsonTrace(num_samples=3), **options)
    assert relative_error(rough.forward_log_det_jacobian(x), exact) > 1e-2


def test_divergence_in_closed_form():
    class Linear(tf.Module):
        def __init__(self):
            super().__init__()
            self.a = tf.Variable([0.5, -0.25], dtype=tf.float64)
            self.asked = 0

        def __call__(self, t, y):
            return self.a * y

        def divergence(self, t, y):
            self.asked += 1
            return tf.reduce_sum(self.a) * tf.ones_like(y[:, 0])

    field, x = Linear(), points(3, 2)
    flow = CNF(field, **TIGHT)
    with tf.GradientTape() as tape:
        log_det = flow.forward_log_det_jacobian(x)
    assert field.asked > 0
    assert relative_error(log_det, np.full(3, 0.25)) < 1e-8
    assert relative_error(tape.gradient(log_det, field.a), [3.0, 3.0]) < 1e-8


@pytest.mark.parametrize("trace", [slow("exact"), "hutchinson"])
def test_regularizers(trace):
    """Against closed forms, in both directions of time."""
    matrix, velocity = np.diag([1.0, -2.0]), np.array([0.5, 1.0])
    options = dict(regularizers=["kinetic_energy", "jacobian_norm"], trace=trace, **TIGHT)
    x = points(3, 2)
    for t, direction in [((0.0, 2.0), "forward_solution"), ((0.0, 2.0), "inverse_solution")]:
        solution = getattr(CNF(lambda t, y: 0.0 * y + velocity, t, **options), direction)(x)
        assert relative_error(solution.kinetic_energy, np.full(3, 2.0 * 1.25)) < 1e-8
        assert relative_error(solution.jacobian_norm, np.zeros(3)) == 0.0
        # A diagonal matrix: |e^T J|^2 is the same for all Rademacher vectors.
        solution = getattr(CNF(lambda t, y: y @ matrix, t, **options), direction)(x)
        assert relative_error(solution.jacobian_norm, np.full(3, 2.0 * 5.0)) < 1e-8


def test_no_regularizers_by_default():
    solution = CNF(Field(), **FIXED).forward_solution(points(2, 3))
    assert solution.kinetic_energy is None and solution.jacobian_norm is None
    assert int(solution.status) == 0 and int(solution.stats.num_accepted) == 3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: HutchinsonTrace("uniform"), "`noise` must be one of"),
        (lambda: HutchinsonTrace(num_samples=0), "`num_samples` must be an int, at least 1"),
        (lambda: HutchPlusPlusTrace(4), "`num_samples` must be a multiple of 3"),
    ],
)
def test_wrong_arguments_of_traces(make, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        make()

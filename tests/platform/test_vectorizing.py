"""Tests of `tf.vectorized_map`, and of Jacobians, which TensorFlow makes by the same means."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from helpers.gradients import relative_error
from helpers.modes import run, slow

import tfsymadj
from tfsymadj._platform import vectorizing
from tfsymadj.bijectors import CNF

EQUAL = dict(method="heun", num_steps=2)
ADAPTIVE = dict(rtol=1e-4, max_steps=32)
REFUSED = (
    r"must not depend on the element of a `tf.vectorized_map`.*Received: controller=PIController"
)


@pytest.fixture
def matrix():
    return tf.Variable(np.random.default_rng(0).normal(size=(2, 2)) / 2)


@pytest.fixture
def xs():
    return tf.constant(np.random.default_rng(1).normal(size=(3, 4, 2)))


def odeint(matrix, options):
    return lambda x: tfsymadj.odeint(lambda t, y: tf.tanh(y @ matrix), x, [0.0, 1.0], **options)[-1]


def log_prob(matrix, options):
    base = tfp.distributions.MultivariateNormalDiag(tf.zeros(2, tf.float64), tf.ones(2, tf.float64))
    flow = CNF(lambda t, y: tf.tanh(y @ matrix), **options)
    return tfp.distributions.TransformedDistribution(base, flow).log_prob


def one_by_one(function, xs):
    return tf.stack([function(x) for x in xs])


@pytest.mark.parametrize(
    "make, mode",
    [(odeint, "eager"), slow(odeint, "graph"), slow(log_prob, "eager"), (log_prob, "graph")],
)
def test_equal_steps(make, mode, matrix, xs):
    function = make(matrix, EQUAL)
    found = run(lambda: tf.vectorized_map(function, xs), mode)
    assert relative_error(found, one_by_one(function, xs)) < 1e-12


def test_under_xla(matrix, xs):
    """The solution only, and without the assertion that `on_failure="raise"` makes."""
    function = odeint(matrix, EQUAL | dict(on_failure="status"))

    @tf.function(jit_compile=True)
    def compute(xs):
        with tfsymadj.no_gradient():
            return tf.vectorized_map(function, xs)

    assert relative_error(compute(xs), one_by_one(function, xs)) < 1e-12


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("make", [odeint, log_prob])
def test_adaptive_steps_of_each_element_are_refused(make, mode, matrix, xs):
    function = make(matrix, ADAPTIVE)
    with pytest.raises(ValueError, match=REFUSED):
        run(lambda: tf.vectorized_map(function, xs), mode)


def test_what_may_differ_is_looked_for_in_all_inputs(matrix, xs):
    def by_end(end):
        return tfsymadj.odeint(lambda t, y: -y, xs[0], tf.stack([0.0, end]), **ADAPTIVE)

    def by_argument(k):
        return tfsymadj.odeint(lambda t, y, k: -k * y, xs[0], [0.0, 1.0], args=k, **ADAPTIVE)

    for function, elements in ((by_end, tf.constant([1.0, 2.0])), (by_argument, xs[:, 0, 0])):
        with pytest.raises(ValueError, match=REFUSED):
            tf.vectorized_map(function, elements)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", slow("graph")])
def test_adaptive_steps_that_all_elements_share(mode, matrix, xs):
    function, scales = odeint(matrix, ADAPTIVE), tf.constant([1.0, 2.0], tf.float64)
    found = run(lambda: tf.vectorized_map(lambda s: s * function(xs[0]), scales), mode)
    assert relative_error(found, scales[:, None, None] * function(xs[0])) < 1e-12


@pytest.mark.parametrize("mode", ["eager", "graph", slow("xla")])
def test_map_fn_takes_them(mode, matrix, xs):
    function = log_prob(matrix, ADAPTIVE)
    found = run(lambda: tf.map_fn(function, xs), mode)
    assert relative_error(found, one_by_one(function, xs)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, options, mode",
    [
        (log_prob, EQUAL, "eager"),
        slow(log_prob, EQUAL, "graph"),
        slow(odeint, ADAPTIVE, "eager"),
        slow(log_prob, ADAPTIVE, "graph"),
    ],
)
def test_jacobians(make, options, mode, matrix, xs):
    function, x = make(matrix, options), xs[0]

    def compute():
        with tf.GradientTape() as tape:
            value = function(x)
        return tape.jacobian(value, matrix)

    def expected():
        with tf.GradientTape(persistent=True) as tape:
            value = function(x)
            entries = tf.unstack(tf.reshape(value, [-1]))
        rows = [tape.gradient(entry, matrix) for entry in entries]
        return tf.reshape(rows, [*value.shape, 2, 2])

    assert relative_error(run(compute, mode), expected()) < 1e-10


def test_scopes_of_the_same_name_mean_nothing():
    @tf.function
    def compute(x):
        with tf.name_scope("loop_body"):
            return vectorizing.differs_by_element([x]), vectorizing.differs_by_element([x + 1.0])

    found = []
    tf.vectorized_map(lambda x: found.append(vectorizing.differs_by_element([2.0 * x])) or x,
                      tf.ones([3]))  # fmt: skip
    assert found == [True] and not any(compute(tf.ones([])))
    assert not vectorizing.differs_by_element([tf.ones([])])

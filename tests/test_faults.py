"""Faults injected into dynamics and inputs: each one speaks, and leaves everything usable.

Failures of the numbers (NaN, poles, steps exhausted) are in loop/test_failures.py.
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run, slow

import tfsymadj
from tfsymadj.layers import ODELayer

FIXED = dict(method="heun", num_steps=3)
ADAPTIVE = dict(method="bosh3", rtol=1e-3, max_steps=32)
OPTIONS = pytest.mark.parametrize("options", [FIXED, slow(ADAPTIVE)], ids=["fixed", "adaptive"])
JIT = pytest.mark.parametrize("jit", [False, slow(True)])


class Faulty:
    """Linear dynamics that do something else while `fault` is set."""

    def __init__(self, fault=None):
        self.w = tf.Variable([[0.5, -0.2], [0.1, 0.3]])
        self.fault = fault
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        good = y @ self.w
        return good if self.fault is None else self.fault(self, t, good)


def gradients(dynamics, mode, options, y0=None, weight=None):
    y0 = tf.ones([3, 2]) if y0 is None else y0

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **options)[-1]
            value = tf.reduce_sum(y**2 if weight is None else weight * y)
        return y, tape.gradient(value, [y0, dynamics.w])

    return run(compute, mode)


def check_usable(dynamics, before, mode, options):
    """The dynamics without their fault, against others that never had one."""
    dynamics.fault = None
    np.testing.assert_array_equal(dynamics.w, before)
    y, found = gradients(dynamics, mode, options)
    expected_y, expected = gradients(Faulty(), mode, options)
    np.testing.assert_array_equal(y, expected_y)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)


RESULTS = {
    "shape": (lambda d, t, k: k[:, :1], ValueError, "shape of `y0`"),
    "rank": (lambda d, t, k: tf.reduce_sum(k), ValueError, "shape of `y0`"),
    "dtype": (lambda d, t, k: tf.cast(k, tf.float64), TypeError, "dtype of `y0`"),
    "number": (lambda d, t, k: 3, ValueError, "shape of `y0`"),
    "integer": (lambda d, t, k: tf.cast(k, tf.int32), TypeError, "dtype of `y0`"),
    "none": (lambda d, t, k: None, TypeError, "dynamics"),
    "text": (lambda d, t, k: "fast", TypeError, "dynamics"),
    "structure": (lambda d, t, k: (k, k), TypeError, "structure of `y0`"),
    "empty": (lambda d, t, k: k[:0], ValueError, "shape of `y0`"),
}


@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
@pytest.mark.parametrize("name", RESULTS)
def test_wrong_results(name, mode):
    fault, error, words = RESULTS[name]
    dynamics = Faulty(fault)
    before = dynamics.w.numpy()
    with pytest.raises(error, match=words):
        gradients(dynamics, mode, FIXED)
    if name in ("shape", "none"):
        check_usable(dynamics, before, mode, FIXED)


@JIT
@pytest.mark.parametrize(
    "shape, fault",
    [
        ([None, 2], lambda y: y[:1]),  # would be broadcast
        ([None, 2], lambda y: y[:0]),
        ([None, None], tf.transpose),
        ([None, None], lambda y: y[:, :1]),
    ],
    ids=["one", "none", "transposed", "column"],
)
def test_wrong_shape_that_the_trace_can_not_tell(shape, fault, jit):
    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec(shape)])
    def compute(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(lambda t, y: fault(-y), y0, [0.0, 1.0], **FIXED)
        return tape.gradient(y, y0)

    with pytest.raises(tf.errors.InvalidArgumentError, match="must_return_the_shape_of_y0"):
        compute(tf.ones([3, 2]))
    # Where the shapes happen to be those of the state, nothing is wrong.
    if fault is not tf.transpose:
        rows = 0 if fault(tf.ones([3, 2])).shape[0] == 0 else 1
        assert compute(tf.ones([rows, 2 if shape[1] else 1])).shape[0] == rows


class Mishap(Exception):
    """Of the user's own."""


def raising(calls, least=5):
    """Dynamics that raise when they are called for the first, ... or last time of so many."""
    assert calls >= least
    for number in (1, 2, calls // 2, calls):

        def fault(dynamics, t, k, number=number):
            if dynamics.calls == number:
                raise Mishap(f"at call {number}")
            return k

        yield number, Faulty(fault)


@pytest.mark.slow
@OPTIONS
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_exception_at_any_trace(mode, options):
    """Traced to see what they use, for the forward pass, recomputation and tapes."""
    healthy, options = Faulty(), dict(gradient=tfsymadj.SymplecticAdjoint("stages"), **options)
    gradients(healthy, mode, options)
    for number, dynamics in raising(healthy.calls):
        before = dynamics.w.numpy()
        with pytest.raises(Exception, match=f"at call {number}") as info:
            gradients(dynamics, mode, options)
        # AutoGraph may wrap it, with the place where it happened.
        assert info.type is Mishap or "Mishap" in str(info.value) or info.type is RuntimeError
    check_usable(dynamics, before, mode, options)


def test_exception_at_any_trace_with_activations():
    """Traced to see what they use, and with their derivative."""
    healthy = Faulty()
    gradients(healthy, "graph", FIXED)
    for number, dynamics in raising(healthy.calls, least=3):
        with pytest.raises(Exception, match=f"at call {number}"):
            gradients(dynamics, "graph", FIXED)


@OPTIONS
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_assertion_inside_of_the_dynamics(mode, options):
    """Assertions are allowed: one that fails ends the solve with its own message."""

    def fault(d, t, k):
        with tf.control_dependencies([tf.debugging.assert_less(t, 0.5, "too late")]):
            return tf.identity(k)

    dynamics = Faulty(fault)
    before = dynamics.w.numpy()
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="too late"):
            gradients(dynamics, mode, options)
    if mode == "graph":  # an eager solve was compiled with the assertion
        check_usable(dynamics, before, mode, options)


@OPTIONS
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_nan_of_a_cotangent(mode, options):
    """The solution is fine; the gradients that depend on it are NaN, and nothing hangs."""
    dynamics = Faulty()
    weight = tf.constant([[np.nan, 1.0]] * 3, tf.float32)
    y, found = gradients(dynamics, mode, options, weight=weight)
    assert np.all(np.isfinite(y))
    for gradient in found:
        assert np.any(np.isnan(gradient))
    check_usable(dynamics, dynamics.w.numpy(), mode, options)


@OPTIONS
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_derivative_that_is_not_finite(mode, options):
    """The values are fine, the taped evaluations are not: as in back-propagation, the gradient."""

    def fault(dynamics, t, k):
        return tf.sqrt(k)  # k = 0 at y = 0, where the slope is infinite

    dynamics = Faulty(fault)
    y0 = tf.constant([[0.0, 0.0], [1.0, 2.0]])
    for method in ("symplectic_adjoint", "backprop"):
        call = options | dict(gradient=method)
        y, found = gradients(dynamics, mode, call, y0, weight=tf.ones([2, 2]))
        assert np.all(np.isfinite(y))
        assert not np.all(np.isfinite(found[0][0])) and not np.all(np.isfinite(found[1]))
        np.testing.assert_array_equal(np.isfinite(found[0][1]), [True, True])
    check_usable(dynamics, dynamics.w.numpy(), mode, options)


@tf.custom_gradient
def checked(x):
    """The identity, with a gradient that refuses large cotangents while it runs."""

    def gradient(g):
        with tf.control_dependencies([tf.debugging.assert_less(tf.abs(g), 1e6, "too steep")]):
            return tf.identity(g)

    return tf.identity(x), gradient


def checked_result(dynamics, t, k):
    return checked(k)


@OPTIONS
@pytest.mark.parametrize("mode", [slow("eager"), "graph"])
def test_assertion_inside_of_the_derivative(mode, options):
    """A taped evaluation that fails while it runs ends the gradient with its own message."""
    dynamics = Faulty(checked_result)
    before = dynamics.w.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="too steep"):
        gradients(dynamics, mode, options, weight=tf.fill([3, 2], 1e9))
    gradients(dynamics, mode, options)
    check_usable(dynamics, before, mode, options)


OUT_OF_MEMORY = """
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tfsymadj

mode = sys.argv[1]
start = 0.01 * np.eye(1000, dtype="float32")
w = tf.Variable(start)
x = np.ones([1000, 1000], "float32")

def dynamics(t, y):
    return tf.tanh(y @ w)

def gradient_of_solve(gradient, num_steps):
    with tf.GradientTape() as tape:
        y = tfsymadj.odeint(
            dynamics, x, [0.0, 1.0], method="euler", num_steps=num_steps, gradient=gradient
        )
        value = tf.reduce_sum(y)
    return tape.gradient(value, w)

if mode == "graph":
    gradient_of_solve = tf.function(gradient_of_solve)
if mode == "xla":
    gradient_of_solve = tf.function(gradient_of_solve, jit_compile=True)

def compute(gradient, num_steps):
    "A gradient, or the weights after one batch."
    if mode != "fit":
        return gradient_of_solve(gradient, num_steps).numpy()
    layer = tfsymadj.layers.ODELayer(
        dynamics, method="euler", num_steps=num_steps, gradient=gradient
    )
    model = keras.Sequential([keras.Input((1000,)), layer])
    model.compile("sgd", "mse")
    w.assign(start)
    model.fit(x, x, batch_size=1000, verbose=0)
    return w.numpy()

small, large = compute("symplectic_adjoint", 3), compute("symplectic_adjoint", 400)
if mode == "xla":  # whose allocator knows no limit of its own
    import resource

    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    (data,) = [1024 * int(line.split()[1]) for line in status if line.startswith("VmData")]
    resource.setrlimit(resource.RLIMIT_DATA, (data + 400 * 2**20, resource.RLIM_INFINITY))
try:
    compute("backprop", 400)
except tf.errors.ResourceExhaustedError as error:
    print("refused:", str(error)[:60])
np.testing.assert_array_equal(w, start)
np.testing.assert_array_equal(compute("symplectic_adjoint", 3), small)
np.testing.assert_array_equal(compute("symplectic_adjoint", 400), large)
assert np.all(np.isfinite(large))
print("usable")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla"), "fit"])
def test_memory_exhausted(mode):
    """TensorFlow says so, and a method that needs less does the same work afterwards."""
    if mode == "xla" and not sys.platform.startswith("linux"):
        pytest.skip("asks Linux for the memory in use")
    limits = {"TF_CPU_ALLOCATOR_USE_BFC": "1", "TF_CPU_BFC_MEM_LIMIT_IN_MB": "768"}
    command = [sys.executable, "-c", OUT_OF_MEMORY, mode]
    environment = {**os.environ, **limits}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "refused:" in result.stdout and "usable" in result.stdout


@OPTIONS
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mode", ["eager", slow("graph"), slow("xla")])
def test_bad_args(mode, value, options):
    def compute():
        return tfsymadj.odeint(lambda t, y, a: a * y, tf.ones([2]), [0.0, 1.0], args=value,
                               **options)[-1]  # fmt: skip

    if mode == "xla":  # which drops assertions
        assert np.all(np.isnan(run(compute, mode)))
    else:
        words = "NON_FINITE_DYNAMICS" + (" at t = 0" if mode == "eager" else "")
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            run(compute, mode)


DATA = np.full([8, 2], 0.1, "float32")


def model_of(dynamics, jit, options):
    model = keras.Sequential([keras.Input((2,)), ODELayer(dynamics, **options)])
    model.compile("sgd", "mse", jit_compile=jit)
    return model


class Field(keras.layers.Layer):
    """A function with a factor that is trained."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, y):
        return self.factor * self.function(y)


IN_FIT = {  # dynamics, an entry of the data that they can't stand, why
    "nan": (tf.tanh, np.nan, "NON_FINITE_STATE"),
    "pole": (tf.square, 1e4, "NON_FINITE|STEP_UNDERFLOW|MAX_STEPS_REACHED"),
    "stiff": (lambda y: -(y**5), 1e4, "NON_FINITE|MAX_STEPS_REACHED"),
}


@pytest.mark.parametrize("jit", [False, slow(True)])
@OPTIONS
@pytest.mark.parametrize("name", IN_FIT)
def test_bad_data_in_fit(name, jit, options):
    """`fit` stops with the reason, and the weights are those before the bad batch."""
    function, entry, reason = IN_FIT[name]
    model = keras.Sequential([keras.Input((2,)), ODELayer(Field(function), **options)])
    model.compile("sgd", "mse", jit_compile=jit)
    x = np.full([8, 2], 0.1, "float32")
    model.fit(x, x, verbose=0)
    before = model.get_weights()
    bad = x.copy()
    bad[3, 1] = entry
    if jit:  # which drops assertions: the loss tells, and Keras' callback stops
        stop = keras.callbacks.TerminateOnNaN()
        loss = model.fit(bad, x, verbose=0, callbacks=[stop]).history["loss"]
        assert np.isnan(loss[-1])
        model.set_weights(before)
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
            model.fit(bad, x, verbose=0)
        for a, b in zip(model.get_weights(), before):
            np.testing.assert_array_equal(a, b)
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"][-1])


def check_trains_on(model, dynamics, before, options):
    """Without its fault the model trains from the weights before it as one that had none."""
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    dynamics.fault = None
    jit = model.jit_compile
    model.compile("sgd", "mse", jit_compile=jit)
    model.fit(DATA, DATA, verbose=0)
    healthy = Faulty()
    other = model_of(healthy, jit, options)
    other.set_weights(before)
    other.fit(DATA, DATA, verbose=0)
    np.testing.assert_array_equal(dynamics.w, healthy.w)


@JIT
@pytest.mark.parametrize("name", [name if name == "shape" else slow(name) for name in RESULTS])
def test_wrong_results_in_fit(name, jit):
    fault, error, words = RESULTS[name]
    if name == "empty":  # the size of a batch is known at run time only
        error, words = tf.errors.InvalidArgumentError, "must_return_the_shape_of_y0"
    dynamics = Faulty()
    model = model_of(dynamics, jit, FIXED)
    model.fit(DATA, DATA, verbose=0)
    before = model.get_weights()
    dynamics.fault = fault
    model.compile("sgd", "mse", jit_compile=jit)  # traces again
    with pytest.raises(error, match=words):
        model.fit(DATA, DATA, verbose=0)
    check_trains_on(model, dynamics, before, FIXED)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE])
def test_exception_in_fit(options, jit):
    """At any of the traces that the layer, `fit` and the gradient make."""
    healthy = Faulty()
    model_of(healthy, jit, options).fit(DATA, DATA, verbose=0)
    for number, dynamics in raising(healthy.calls):
        before = dynamics.w.numpy()
        with pytest.raises(Exception, match=f"at call {number}"):
            model_of(dynamics, jit, options).fit(DATA, DATA, verbose=0)
        np.testing.assert_array_equal(dynamics.w, before)
    dynamics.fault = None
    check_trains_on(model_of(dynamics, jit, options), dynamics, [before], options)


@pytest.mark.parametrize("options", [FIXED, slow(ADAPTIVE)])
@pytest.mark.parametrize("place", ["dynamics", "derivative"])
def test_assertion_in_fit(place, options):
    def late(d, t, k):
        with tf.control_dependencies([tf.debugging.assert_less(t, 0.5, "too late")]):
            return tf.identity(k)

    fault, words = (late, "too late") if place == "dynamics" else (checked_result, "too steep")
    dynamics = Faulty(fault)
    model = model_of(dynamics, False, options)
    before = model.get_weights()
    target = DATA if place == "dynamics" else np.full_like(DATA, 1e9)
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        model.fit(DATA, target, verbose=0)
    check_trains_on(model, dynamics, before, options)


@JIT
@pytest.mark.parametrize("options", [FIXED, slow(ADAPTIVE)])
@pytest.mark.parametrize("name", ["target", slow("derivative")])
def test_gradients_that_are_not_finite_in_fit(name, options, jit):
    """The solves are fine; Keras writes into the weights what it is given."""
    dynamics = Faulty(None if name == "target" else lambda d, t, k: tf.sqrt(k))
    model = model_of(dynamics, jit, options)
    before = model.get_weights()
    x = np.tile(np.float32([0.1, 0.2]), [8, 1])  # where the square roots are of positive numbers
    target = x.copy()
    if name == "target":
        target[2, 1] = np.nan
    else:
        x[2] = 0.0
    loss = model.fit(x, target, verbose=0).history["loss"][-1]
    assert np.isnan(loss) == (name == "target")
    assert np.any(np.isnan(dynamics.w))
    model.set_weights(before)
    check_trains_on(model, dynamics, before, options)


class Timed(keras.Model):
    """A solve whose last time and whose factor come with the data."""

    def __init__(self, options):
        super().__init__()
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.solver = ODELayer(lambda t, y, a: a * self.w * y, **options)

    def call(self, inputs):
        y, t, a = inputs
        return self.solver(y, t=tf.stack([0.0, tf.reduce_mean(t)]), args=(a,))


@JIT
@pytest.mark.parametrize("options", [FIXED, slow(ADAPTIVE)])
@pytest.mark.parametrize(
    "place, value, reason",
    [
        (1, np.nan, "TIMES_NOT_MONOTONIC"),
        slow(1, 0.0, "TIMES_NOT_MONOTONIC"),  # the last time is the first
        slow(2, np.nan, "NON_FINITE_DYNAMICS"),
        slow(2, np.inf, "NON_FINITE_DYNAMICS"),
    ],
)
def test_bad_times_and_args_in_fit(place, value, reason, options, jit):
    model = Timed(options)
    model.compile("sgd", "mse", jit_compile=jit)
    inputs = [DATA, DATA[:, :1], DATA[:, :1]]
    model.fit(inputs, DATA, verbose=0)
    before = model.get_weights()
    bad = list(inputs)
    bad[place] = inputs[place].copy()
    bad[place][:] = value
    if jit:  # which drops assertions
        assert np.isnan(model.fit(bad, DATA, verbose=0).history["loss"][-1])
        model.set_weights(before)
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
            model.fit(bad, DATA, verbose=0)
        for a, b in zip(model.get_weights(), before):
            np.testing.assert_array_equal(a, b)
    assert np.isfinite(model.fit(inputs, DATA, verbose=0).history["loss"][-1])


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_discontinuous_and_stiff_dynamics_end(mode):
    """Within their bound of steps, with a right solution or a status."""

    def jump(t, y):
        return tf.where(t < 0.5, -y, 3.0 * tf.sign(y - 0.2))

    def stiff(t, y):
        return -1e5 * (y - tf.cos(t))

    def compute():
        solutions = [
            tfsymadj.solve(
                dynamics, tf.ones([2], tf.float64), [0.0, 1.0], rtol=1e-6, max_steps=500,
                on_failure="status",
            )
            for dynamics in (jump, stiff)
        ]  # fmt: skip
        return [(s.y[-1], s.status, s.stats.num_steps) for s in solutions]

    (y, status, steps), (lost, failure, most) = run(compute, mode)
    assert status == tfsymadj.Status.SUCCESS and steps < 200
    np.testing.assert_allclose(y, np.exp(-0.5) + 1.5 + 0 * y, rtol=1e-4)
    assert failure == tfsymadj.Status.MAX_STEPS_REACHED and most == 500
    assert np.all(np.isnan(lost))


def test_absurd_sizes_are_refused_without_being_tried():
    def decay(t, y):
        return -y

    y0 = tf.ones([2])
    for options, name in [
        (dict(max_steps=2**40), "max_steps"),
        (dict(max_steps=2**30, gradient=tfsymadj.SymplecticAdjoint("steps")), "max_steps"),
        (dict(max_steps=-1), "max_steps"),
        (dict(num_steps=10**12), "num_steps"),
        (dict(num_steps=10**9), "num_steps"),
        (dict(step_size=1e-300), "step_size"),
        (dict(gradient=tfsymadj.SymplecticAdjoint(2)), "checkpoints"),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            tfsymadj.odeint(decay, tf.ones([2**16]) if "gradient" in options else y0, [0.0, 1.0],
                            **options)  # fmt: skip
    # More than there is to keep: all is kept.
    solution = tfsymadj.solve(
        decay, y0, [0.0, 1.0], num_steps=4, gradient=tfsymadj.SymplecticAdjoint(10**12)
    )
    assert solution.status == tfsymadj.Status.SUCCESS

"""Numbers of the state: first steps, half precision, dtypes of arguments, times, odd structures."""

import functools
import inspect
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import MODES, XLA_SLOW, run, slow

import tfsymadj
from tfsymadj import METHODS, PIController, Status

HALF = [tf.float16, tf.bfloat16]
EPSILON = {tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}


class Nothing:
    """No number, with a name that is the same in every process."""

    def __repr__(self):
        return "nothing"


NOTHING = Nothing()


def decay(t, y):
    return -y


# First steps


def ramp(t, y):
    """The first entry starts at zero, with a slope; the second one decays."""
    return tf.stack([tf.ones_like(y[0]), -y[1]])


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64])
def test_first_step_without_a_scale(dtype, mode):
    y0 = tf.constant([0.0, 1.0], dtype)
    solution = run(lambda: tfsymadj.solve(ramp, y0, [0.0, 1.0], rtol=1e-4, atol=0.0), mode)
    np.testing.assert_allclose(solution.y[-1], [1.0, np.exp(-1.0)], rtol=1e-3)
    assert int(solution.stats.num_steps) < 20


ODD = {
    "zero": (lambda t, y: 0.0 * y, 1.0, dict(atol=0.0), 1.0),
    "zero state": (lambda t, y: tf.ones_like(y), 0.0, dict(atol=0.0), 1.0),
    "zero state and slope": (lambda t, y: 0.0 * y, 0.0, dict(atol=0.0), 0.0),
    "denormal slope": (lambda t, y: 0.0 * y + 1e-42, 1.0, dict(), 1.0),
    "denormal state": (lambda t, y: 0.0 * y, 1e-42, dict(), 0.0),
    "huge slope": (lambda t, y: 1e25 * tf.cos(t) + 0.0 * y, 1.0, dict(), 1e25 * np.sin(1.0)),
    "huge state": (decay, 1e37, dict(), 1e37 * np.exp(-1.0)),
    "state near zero": (lambda t, y: tf.ones_like(y), 1e-30, dict(atol=0.0), 1.0),
    "tiny tolerance": (decay, 1.0, dict(rtol=0.0, atol=1e-6), np.exp(-1.0)),
    "huge over tolerance": (decay, 1e35, dict(rtol=1e-6, atol=1e-30), 1e35 * np.exp(-1.0)),
    "small over tolerance": (decay, 1e30, dict(rtol=1e-3, atol=1e-30), 1e30 * np.exp(-1.0)),
    "beyond the squares": (decay, 1e24, dict(rtol=0.0, atol=1e20), 1e24 * np.exp(-1.0)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ODD)
def test_odd_slopes_and_states(name, dtype):
    dynamics, y0, options, expected = ODD[name]
    y0 = tf.constant([y0], dtype)
    solution = tfsymadj.solve(dynamics, y0, [0.0, 1.0], **options)
    np.testing.assert_allclose(solution.y[-1, 0], expected, rtol=1e-2, atol=1e-30)
    assert int(solution.stats.num_steps) < 100


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mode", XLA_SLOW)
def test_infinite_first_slope(mode, value):
    solution = run(
        lambda: tfsymadj.solve(
            lambda t, y: tf.where(y > 0.0, -y, value), tf.constant([1.0, 0.0]), [0.0, 1.0],
            on_failure="status",
        ),
        mode,
    )  # fmt: skip
    assert int(solution.status) == Status.NON_FINITE_DYNAMICS
    assert np.isnan(solution.y[1]).all()


@pytest.mark.parametrize("first_step", [None, 1e-20])
@pytest.mark.parametrize("t0", [1e9, -1e12, 1e15])
def test_first_step_far_from_zero(t0, first_step):
    """Where 1e-6, the least first step by the textbook, would not move the time."""
    length = 1e5 * np.spacing(abs(t0))
    solution = tfsymadj.solve(
        lambda t, y: -y / length, np.ones(1), [t0, t0 + length], first_step=first_step, rtol=1e-5
    )
    np.testing.assert_allclose(solution.y[-1, 0], np.exp(-1.0), rtol=1e-4)
    assert int(solution.stats.num_accepted) < 30


def test_no_tolerance_at_all_is_not_met():
    """Nor is an error of an entry that is zero before and after the step."""
    solution = tfsymadj.solve(decay, [1.0], [0.0, 1.0], rtol=0.0, atol=0.0, on_failure="status")
    assert int(solution.status) != Status.SUCCESS
    controller = PIController(1e-3, 0.0).for_method(METHODS["dopri5"])
    zeros = [tf.constant([0.0, 1.0])]
    assert float(controller.error_norm([tf.constant([1e-9, 0.0])], zeros, zeros)) > 1e3
    assert float(controller.error_norm([tf.constant([0.0, 0.0])], zeros, zeros)) == 0.0


def test_a_step_of_zero_is_not_accepted():
    """Towards a singularity at t = 1 the steps vanish: the solve must not creep on without time."""
    solution = tfsymadj.solve(
        lambda t, y: y**2, np.ones(1), [0.0, 2.0], on_failure="status", max_steps=2000
    )
    assert int(solution.status) != Status.SUCCESS
    assert np.isnan(solution.y[-1, 0])


def test_a_singularity_far_from_zero_is_an_underflow():
    solution = tfsymadj.solve(
        lambda t, y: y**2 * 1e-3, np.ones(1), [1e12, 1e12 + 2e3], on_failure="status"
    )
    assert int(solution.status) in (Status.STEP_UNDERFLOW, Status.NON_FINITE_DYNAMICS)


# Half precision


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("options", [dict(rtol=1e-2), dict(method="tsit5", rtol=1e-2, atol=0.0)])
def test_half_precision_adaptive(options, dtype, mode):
    y0, rate = tf.ones([2], dtype), tf.constant([1.0, 2.0], dtype)
    times = [0.0, 0.5, 1.0]

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, rate])
            solution = tfsymadj.solve(lambda t, y: -rate * y, y0, times, **options)
            value = tf.reduce_sum(solution.y[-1])
        return solution, tape.gradient(value, [y0, rate])

    solution, (to_y0, to_rate) = run(compute, mode)
    assert solution.y.dtype == to_y0.dtype == to_rate.dtype == dtype
    expected = np.exp(-np.array(times)[:, None] * [1.0, 2.0])
    close = dict(rtol=3e-2 + 6 * EPSILON[dtype])
    np.testing.assert_allclose(tf.cast(solution.y, tf.float64), expected, **close)
    np.testing.assert_allclose(tf.cast(to_y0, tf.float64), expected[-1], **close)
    np.testing.assert_allclose(tf.cast(to_rate, tf.float64), -expected[-1], **close)
    assert int(solution.stats.num_steps) < 50


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "gradient", [slow("backprop"), slow("baseline"), "aca", slow("continuous_adjoint")]
)
def test_half_precision_of_the_other_gradients(gradient, dtype):
    w = tf.Variable([1.0, 0.5], dtype=dtype)
    y0 = tf.ones([2], dtype)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: -w * y, y0, [0.0, 1.0], gradient=gradient, rtol=1e-2)
        value = tf.reduce_sum(y[-1])
    expected = np.exp([-1.0, -0.5])
    for found, exact in zip(tape.gradient(value, [y0, w]), (expected, -expected)):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            tf.cast(found, tf.float32), exact, rtol=0.03 + 6 * EPSILON[dtype]
        )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_sums_are_compensated(dtype):
    """A thousand steps, each of them too small for half precision."""
    y = tfsymadj.odeint(
        lambda t, y: tf.ones_like(y),
        tf.ones([1], dtype),
        [0.0, 1.0],
        method="euler",
        num_steps=1000,
    )
    np.testing.assert_allclose(tf.cast(y[-1], tf.float32), [2.0], rtol=EPSILON[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_of_the_dynamics(dtype):
    """The dynamics get the state in its own dtype, also parts of a nest, and must return it."""

    def dynamics(t, y):
        assert (t.dtype, y["a"].dtype, y["b"].dtype) == (dtype, dtype, tf.float32)
        return {"a": -y["a"], "b": -y["b"]}

    y0 = {"a": tf.ones([2], dtype), "b": tf.ones([3])}
    y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], rtol=1e-2)
    assert (y["a"].dtype, y["b"].dtype) == (dtype, tf.float32)
    with pytest.raises(TypeError, match="`dynamics`.*Received: float32"):
        tfsymadj.odeint(lambda t, y: tf.cast(-y, tf.float32), y0["a"], [0.0, 1.0], num_steps=2)


def test_tolerance_below_half_precision():
    with pytest.warns(UserWarning, match="`rtol` is below the precision of bfloat16.*Received"):
        solution = tfsymadj.solve(decay, tf.ones([3], tf.bfloat16), [0.0, 1.0], rtol=1e-9)
    assert int(solution.stats.num_steps) < 20


# Numbers of Python among the arguments


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype", [tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128]
)
def test_numbers_take_the_dtype_of_the_state(dtype, mode):
    seen = []

    def dynamics(t, y, k, more):
        seen.append([x.dtype for x in tf.nest.flatten((k, more))])
        return -tf.cast(k + more["a"][0] + more["a"][1], y.dtype) * y

    options = dict(args=(2, {"a": [0.5, -0.5]}), method="rk4", num_steps=8)
    y = run(lambda: tfsymadj.odeint(dynamics, tf.ones([1], dtype), [0.0, 0.5], **options), mode)
    assert {x for xs in seen for x in xs} == {dtype.real_dtype}
    np.testing.assert_allclose(tf.cast(y[-1], tf.complex128), [np.exp(-1.0)], rtol=1e-2)


@pytest.mark.parametrize(
    "value, dtype",
    [
        (True, tf.bool),
        (1j, tf.complex128),
        (np.float32(2.0), tf.float32),
        (np.float64(2.0), tf.float64),
        (np.int64(2), tf.int64),
        (np.array(2), tf.int64),
        (np.array([2.0], "float16"), tf.float16),
        (tf.constant(2), tf.int32),
        (tf.Variable(2.0), tf.float32),
        (2**40, tf.float64),
    ],
)
def test_arrays_keep_their_dtype(value, dtype):
    def dynamics(t, y, k):
        assert k.dtype == dtype
        return -y

    for args in ((value,), value if not isinstance(value, tuple) else (value,)):
        tfsymadj.odeint(dynamics, np.ones(1), [0.0, 1.0], args=args, num_steps=1)


def test_precision_of_a_number():
    y = tfsymadj.odeint(
        lambda t, y, k: -k * y, np.ones(1), [0.0, 1.0], args=(0.1,), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(y[-1, 0], np.exp(-0.1), rtol=1e-8)


# Times


def forced(t, y):
    return -y + tf.cos(tf.cast(t, y.dtype))


def time_in_a_nested_function(t, y):
    return tf.map_fn(lambda x: -x * tf.cast(t, y.dtype), y)


LATE = {
    "interval": dict(t=[1.7e9, 1.7e9 + 20.0]),
    "interval of several": dict(t=[0.0, 1.7e9, 1.7e9 + 20.0], max_steps=5),
    "fixed": dict(t=[1.7e9, 1.7e9 + 1000.0], method="rk4", num_steps=1000),
    "fixed size": dict(t=[1.7e9, 1.7e9 + 1000.0], method="rk4", step_size=1.0),
    "backward": dict(t=[-1.7e9, -1.7e9 - 20.0]),
    "half": dict(t=[2000.0, 2000.5], y0=tf.zeros([1], tf.float16)),
    "double": dict(t=[1e15, 1e15 + 1.0], y0=np.zeros(1), method="rk4", num_steps=100),
    "captured": dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=time_in_a_nested_function),
}


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("name", LATE)
def test_times_that_the_dynamics_can_not_tell_apart(name, mode):
    options = dict(dynamics=forced, y0=tf.zeros([1]), on_failure="status") | LATE[name]
    with pytest.warns(UserWarning, match="times of `t`.*Shift the origin.*Received: ") as caught:
        run(lambda: tfsymadj.solve(**options).status, mode)
    assert len(caught) == 1


def test_steps_that_the_dynamics_can_not_tell_apart():
    """Adaptive steps are known after an eager solve."""
    with pytest.warns(UserWarning, match="times of `t`"):
        tfsymadj.odeint(forced, tf.zeros([1]), [1.7e9, 1.7e9 + 1000.0], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(t=[1e4, 1e4 + 5.0]),
        dict(t=[1e6, 1e6 + 1.0], num_steps=4),
        dict(t=[1.7e9, 1.7e9 + 20.0], y0=np.zeros(1)),
        # What doesn't use the time can't be wrong about it.
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=decay),
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=lambda t, y: -y),
        dict(t=[1.7e9, 1.7e9 + 20.0], dynamics=keras.layers.Dense(1), y0=tf.zeros([1, 1])),
    ],
)
def test_no_warning_of_times(options):
    options = dict(dynamics=forced, y0=tf.zeros([1]), t=[0.0, 5.0]) | options
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfsymadj.solve(**options)


def test_shifted_times_are_right():
    """The remedy: the origin among the arguments, in float64."""
    t = np.array([1.7e9, 1.7e9 + 20.0])

    def shifted(t, y, origin):
        time = tf.cast(t, tf.float64) + origin
        return -y + tf.cast(tf.cos(0.2 * np.pi * time), y.dtype)

    y = tfsymadj.odeint(
        shifted, tf.zeros([1]), t - t[0], args=(tf.constant(t[0]),), rtol=1e-5, atol=1e-7
    )
    expected = tfsymadj.odeint(
        lambda t, y: -y + tf.cos(0.2 * np.pi * t), np.zeros(1), t, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(y[-1], expected[-1], rtol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("n", [101, 5001])
def test_more_outputs_than_steps(n, mode):
    options = dict(max_steps=100) if n == 101 else dict()

    def call(n):
        return tfsymadj.odeint(decay, tf.ones([1]), np.linspace(0.0, 1.0, n), **options)

    with pytest.raises(ValueError, match="`max_steps`(.|\n)*`t`(.|\n)*Received: "):
        run(lambda: call(n + 1), mode)
    if n == 101:
        np.testing.assert_allclose(run(lambda: call(n), mode)[-1], [np.exp(-1.0)], rtol=1e-3)
    fixed = tfsymadj.odeint(
        decay, tf.ones([1]), np.linspace(0.0, 1.0, 200), num_steps=1, max_steps=9
    )
    np.testing.assert_allclose(fixed[-1], [np.exp(-1.0)], rtol=1e-3)
    with pytest.raises(ValueError, match="`max_steps`"):
        tfsymadj.ODELayer(keras.layers.Dense(2), t=np.linspace(0.0, 1.0, 12), max_steps=10)


# Structures


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(
    "y0",
    [
        [np.ones(2, "float32"), np.ones(3, "float32")],
        [[1.0, 2.0], [3.0]],
        [[np.ones(2)], [np.ones(2), np.ones(2)]],
        tf.ragged.constant([[1.0, 2.0], [3.0]]),
        (1.0, tf.ragged.constant([[1.0, 2.0], [3.0]])),
        tf.sparse.from_dense([1.0, 0.0]),
        {"a": tf.ones([2]), "b": None},
        None,
        "text",
        ["a", "b"],
        b"bytes",
        (1.0, "text"),
        [True, False],
        np.array([True]),
        (1.0, False),
        (1.0, 2),
        np.array([1, 2]),
        np.array([NOTHING]),
        NOTHING,
    ],
    ids=str,
)
def test_wrong_states(y0, mode):
    with pytest.raises((TypeError, ValueError), match="`y0`(.|\n)*Received: (.|\n)+"):
        run(lambda: tfsymadj.odeint(lambda t, y: y, y0, [0.0, 1.0]), mode)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(
    "args",
    [
        None,
        (None,),
        ({"a": 1.0, "b": None},),
        ("text",),
        (np.array(["a"]),),
        (tf.ragged.constant([[1.0, 2.0], [3.0]]),),
        tf.sparse.from_dense([1.0, 0.0]),
        (NOTHING,),
    ],
    ids=str,
)
def test_wrong_args(args, mode):
    with pytest.raises((TypeError, ValueError), match="`args`(.|\n)*Received: (.|\n)+"):
        run(lambda: tfsymadj.odeint(lambda t, y, *args: -y, 1.0, [0.0, 1.0], args=args), mode)


@pytest.mark.parametrize(
    "result",
    [tf.RaggedTensor.from_tensor, tf.sparse.from_dense, lambda y: "text", lambda y: object()],
)
def test_wrong_results_of_the_dynamics(result):
    with pytest.raises(TypeError, match="`dynamics`(.|\n)*Received: "):
        tfsymadj.odeint(lambda t, y: result(y), tf.ones([2, 2]), [0.0, 1.0])


@pytest.mark.parametrize("name", ["y0", "args"])
def test_symbolic_tensors_of_keras(name):
    options = dict(y0=1.0, args=()) | {name: keras.Input((2,))}
    with pytest.raises(ValueError, match=f"`{name}`.*`ODELayer`"):
        tfsymadj.odeint(lambda t, y, *args: -y, t=[0.0, 1.0], **options)


@pytest.mark.parametrize("mode", XLA_SLOW)
def test_states_of_numbers(mode):
    def solve(y0):
        return tfsymadj.odeint(
            lambda t, y: tf.nest.map_structure(tf.negative, y), y0, [0.0, 1.0], rtol=1e-5
        )

    for y0 in (1.0, [1.0, 1.0], (1.0, 1.0), [[1.0], [1.0]], {"a": 1.0, "b": [1.0]}, ([1.0], 1j)):
        y = run(lambda y0=y0: solve(y0), mode)
        for x in tf.nest.flatten(y):
            np.testing.assert_allclose(x[-1], x[0] * np.exp(-1.0), rtol=1e-3)
    # A list of tensors is a nest, of arrays of one shape an array.
    assert [x.shape for x in solve([tf.ones([2]), tf.ones([3])])] == [(2, 2), (2, 3)]
    assert solve([np.ones(2), np.ones(2)]).shape == (2, 2, 2)


@pytest.mark.parametrize("name", ["y0", "t"])
def test_unknown_ranks(name):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)], autograph=False)
    def compute(x):
        options = dict(y0=tf.ones([2]), t=[0.0, 1.0]) | {name: x}
        return tfsymadj.odeint(decay, **options)

    with pytest.raises(ValueError, match=f"`{name}`(.|\n)*Received: "):
        compute(np.array([0.0, 1.0]))


def test_unknown_ranks_of_args():
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float64)])
    def compute(a):
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = tfsymadj.odeint(
                lambda t, y, a: -y * tf.reduce_sum(a), np.ones(1), [0.0, 1.0], args=a, rtol=1e-6
            )
            value = y[-1, 0]
        return value, tape.gradient(value, a)

    for a in (np.array(1.0), np.full([2, 2], 0.25)):
        value, gradient = compute(a)
        np.testing.assert_allclose(value, np.exp(-1.0), rtol=1e-4)
        np.testing.assert_allclose(gradient, np.full(a.shape, -np.exp(-1.0)), rtol=1e-4)


# Debugging switches


GRADIENTS = [
    "symplectic_adjoint",
    "backprop",
    slow("baseline"),
    slow("aca"),
    slow("continuous_adjoint"),
]


def solve_with_gradient(options):
    w = tf.Variable([1.0, 0.5])
    y0 = tf.constant([[1.0, 0.0], [2.0, -1.0]])
    t = tf.constant([0.0, 0.3, 1.0], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, t])
            y = tfsymadj.odeint(lambda t, y: -w * y + tf.cos(t), y0, t, **options)
            value = tf.reduce_sum(y[1:] ** 2)
        return [y, *tape.gradient(value, [y0, t, w])]

    return compute


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_check_numerics(gradient, mode, check_numerics):
    for x in run(solve_with_gradient(dict(gradient=gradient)), mode):
        assert np.isfinite(x).all()


@pytest.mark.parametrize(
    "options",
    [
        dict(atol=0.0),
        slow(dict(method="rk4", num_steps=5)),
        slow(dict(gradient=tfsymadj.SymplecticAdjoint(16))),
    ],
)
def test_check_numerics_with_options(options, check_numerics):
    for x in run(solve_with_gradient(options), "eager"):
        assert np.isfinite(x).all()


def test_check_numerics_in_fit(check_numerics):
    model = keras.Sequential([keras.Input((2,)), tfsymadj.ODELayer(keras.layers.Dense(2))])
    model.compile("sgd", "mse", jit_compile=False)
    history = model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize(
    "dynamics, y0", [(lambda t, y: 0.0 * y, [1.0]), (decay, [0.0]), (ramp, [0.0, 1.0])]
)
def test_check_numerics_of_zero_slopes(dynamics, y0, check_numerics):
    assert np.isfinite(tfsymadj.odeint(dynamics, y0, [0.0, 1.0])).all()


def test_check_numerics_still_finds_what_is_wrong(check_numerics):
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfsymadj.odeint(lambda t, y: tf.math.log(-y), [1.0], [0.0, 1.0])


@pytest.fixture
def functions_run_eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_functions_run_eagerly(gradient, mode, functions_run_eagerly):
    found = run(solve_with_gradient(dict(gradient=gradient)), mode)
    tf.config.run_functions_eagerly(False)
    expected = run(solve_with_gradient(dict(gradient=gradient)), "eager")
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_fit_with_functions_run_eagerly(functions_run_eagerly):
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), method="rk4", num_steps=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")
    before = [w.copy() for w in model.get_weights()]
    model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights()))


# Python control flow on tensors


def bent(t, y):
    if t < 0.5:
        return tf.ones_like(y)
    return tf.zeros_like(y)


def shifted_bend(at, t, y, *, by=0.0):
    if t + by < at:
        return tf.ones_like(y)
    return tf.zeros_like(y)


class Bends:
    """Branches in methods of all kinds."""

    at = 0.5

    def method(self, t, y):
        slope = tf.zeros_like(y)
        if t < self.at:
            for _ in tf.range(4):
                slope += 0.25
        return slope

    def __call__(self, t, y):
        return self.method(t, y)

    @classmethod
    def of_class(cls, t, y):
        return tf.ones_like(y) if t < cls.at else tf.zeros_like(y)

    @staticmethod
    def static(t, y):
        n = 0.0
        while n < 1.0 and t < 0.5:
            n += 0.5
        return n * tf.ones_like(y)


class Inherited(Bends):
    def method(self, t, y):
        if t < 0.6:
            return super().method(t, y)
        return tf.zeros_like(y)


class Module(tf.Module):
    @tf.Module.with_name_scope
    def __call__(self, t, y):
        if t < 0.5:
            return tf.ones_like(y)
        return tf.zeros_like(y)


class Private:
    """A private name, which AutoGraph can't read: called as it is."""

    def __init__(self):
        self.__rate = 1.0

    def method(self, t, y):
        return tf.where(t < 0.5, self.__rate, 0.0) * tf.ones_like(y)


def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


BRANCHES = {
    "function": bent,
    "method": Bends().method,
    "callable object": Bends(),
    "class method": Bends.of_class,
    "static method": Bends.static,
    "inherited": Inherited().method,
    "inherited call": Inherited(),
    "unbound": functools.partial(Bends.method, Bends()),
    "module": Module(),
    "module method": Module().__call__,
    "lambda": lambda t, y: tf.ones_like(y) if t < 0.5 else tf.zeros_like(y),
    "lambda around": lambda t, y: bent(t, y),
    "partial": functools.partial(shifted_bend, 0.5),
    "partial of partial": functools.partial(functools.partial(shifted_bend, 0.6), by=0.1),
    "partial of method": functools.partial(Bends().method),
    "decorated": decorated(bent),
    "tf.function": tf.function(bent),
    "not converted": tf.autograph.experimental.do_not_convert(
        lambda t, y: tf.where(t < 0.5, tf.ones_like(y), tf.zeros_like(y))
    ),
    "private": Private().method,
}


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name, mode):
    y0 = tf.constant([1.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(BRANCHES[name], y0, [0.0, 1.0], method="euler", num_steps=4)[-1]
        return y, tape.gradient(y, y0)

    # Euler at 0, 1/4, 1/2, 3/4: the first two with slope 1
    y, gradient = run(compute, mode)
    np.testing.assert_allclose(y, [1.5], rtol=1e-6)
    np.testing.assert_allclose(gradient, [1.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["module", "lambda", "partial", "class method"])
def test_branch_in_a_layer_in_fit(name):
    layer = tfsymadj.ODELayer(BRANCHES[name], method="euler", num_steps=4)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), layer])
    for jit in (False, True):
        model.compile("sgd", "mse", jit_compile=jit)
        model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)


def test_a_function_is_converted_once(monkeypatch):
    """However many solves, traces and objects: what can't be read isn't tried again either."""
    source = []
    original = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda f: source.append(f) or original(f))
    for _ in range(3):
        for dynamics in (Bends().method, Private().method, lambda t, y: 0.5 * bent(t, y)):
            tfsymadj.odeint(dynamics, 1.0, [0.0, 1.0], method="euler", num_steps=2)
    assert len(source) <= 4


# Where warnings point


def here():
    """The line that calls this."""
    return sys._getframe(1).f_lineno


def test_warnings_point_at_the_caller():
    y0 = tf.ones([2])
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), rtol=1e-12)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")

    def compiled():
        return tfsymadj.odeint(decay, y0, [0.0, 1.0], rtol=1e-12)

    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfsymadj.solve(decay, y0, [0.0, 1.0], rtol=1e-12), lines.append(here())
        tfsymadj.odeint(decay, y0, [0.0, 1.0], rtol=1e-12), lines.append(here())
        tfsymadj.odeint(forced, y0, [1.7e9, 1.7e9 + 1.0]), lines.append(here())
        layer(tf.ones([1, 2])), lines.append(here())
        model.fit(np.ones((2, 2)), np.ones((2, 2)), verbose=0), lines.append(here())
        model.predict(np.ones((2, 2)), verbose=0), lines.append(here())
        tf.function(compiled)(), lines.append(inspect.getsourcelines(compiled)[1] + 1)
        tf.function(compiled, autograph=False)(), lines.append(lines[-1])
    caught = [w for w in caught if w.category is UserWarning]
    assert [w.filename for w in caught] == [__file__] * len(caught)
    assert sorted({w.lineno for w in caught}) == sorted(set(lines))


def test_controller_objects_warn_as_well():
    with pytest.warns(UserWarning, match="`rtol`") as caught:
        tfsymadj.odeint(decay, tf.ones([1]), [0.0, 1.0], controller=PIController(1e-12))
    assert caught[0].filename == __file__
    assert METHODS["dopri5"].adaptive

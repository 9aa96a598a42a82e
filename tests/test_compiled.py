"""Tests of compiled eager solves: traced once, never stale, and collected with their dynamics."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.problems import loss

import tfsymadj
from tfsymadj import compiled

FIXED = dict(method="euler", num_steps=4)
ADAPTIVE = dict(method="bosh3", rtol=1e-3)
OPTIONS = pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])


def grow(a):
    """The result of Euler's method for y' = a y from 1 to 1 in four steps."""
    return (1.0 + a / 4.0) ** 4


def end(dynamics, y0=1.0, **options):
    y0 = tf.constant(y0, tf.float64)
    return float(tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **(FIXED | options))[-1])


class Traces:
    """Dynamics that count how often they are run as Python code: only when traced."""

    def __init__(self):
        self.count = 0
        self.w = tf.Variable(-0.5, dtype=tf.float64)

    def __call__(self, t, y):
        self.count += 1
        return self.w * y + t


# No retracing


@OPTIONS
def test_second_call_does_not_retrace(options):
    dynamics = Traces()
    tfsymadj.odeint(dynamics, np.ones(3), [0.0, 1.0], **options)
    first = dynamics.count
    assert first > 0
    tfsymadj.odeint(dynamics, 2 * np.ones(3), [0.0, 1.0], **options)
    tfsymadj.odeint(dynamics, np.ones(3), (0.5, 2.5), **options)
    tfsymadj.odeint(dynamics, tf.zeros(3, tf.float64), np.array([3.0, 1.0]), **options)
    assert dynamics.count == first


def test_other_step_size_counts_do_not_retrace():
    dynamics = Traces()

    def solve(length):
        times = [0.0, length]
        return tfsymadj.solve(dynamics, np.ones(1), times, method="euler", step_size=0.5)

    assert int(solve(1.0).stats.num_steps) == 2
    count = dynamics.count
    assert int(solve(2.0).stats.num_steps) == 4
    assert int(solve(3.1).stats.num_steps) == 7
    assert dynamics.count == count


@OPTIONS
def test_training_loop_does_not_retrace(options):
    dynamics = Traces()
    optimizer = keras.optimizers.SGD(0.01)
    w = keras.Variable(0.3, dtype="float64")

    def train(step):
        with tf.GradientTape() as tape:
            tape.watch(dynamics.w)
            times = [0.0, 1.0 + 0.001 * step]
            y = tfsymadj.odeint(dynamics, w * tf.ones([2], tf.float64), times, **options)
            value = loss(y)
        grads = tape.gradient(value, [w.value, dynamics.w])
        optimizer.apply_gradients([(grads[0], w)])
        dynamics.w.assign_sub(0.01 * grads[1])
        return float(value)

    losses = [train(0)]
    train(1)
    count = dynamics.count
    losses += [train(step) for step in range(2, 100)]
    assert dynamics.count == count
    assert losses[-1] < losses[0]


def test_numbers_of_times_that_change():
    """The third number makes TensorFlow trace for an unknown one, and so for unknown buffers."""
    w = tf.Variable(0.5, dtype=tf.float64)

    def dynamics(t, y):
        return tf.sin(w * y)

    def gradient(times, method):
        with tf.GradientTape() as tape:
            y = tfsymadj.odeint(
                dynamics, np.ones(3), times, method="heun", num_steps=2, gradient=method
            )
            value = loss(y)
        return tape.gradient(value, w)

    for count in (2, 3, 4, 6, 2, 3, 20, 5):
        times = np.linspace(0.0, 1.0, count)
        expected = gradient(times, "backprop")
        np.testing.assert_allclose(gradient(times, "symplectic_adjoint"), expected, rtol=1e-12)


def test_new_variable_values_are_seen():
    dynamics = Traces()
    y0 = tf.ones([], tf.float64)

    def value():
        return float(tfsymadj.odeint(lambda t, y: dynamics(t, y), y0, [0.0, 1.0], **FIXED)[-1])

    def same():
        return float(tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **FIXED)[-1])

    a = same()
    dynamics.w.assign(0.5)
    b = same()
    assert a != b == value()


def test_options_are_part_of_the_key():
    def dynamics(t, y):
        return -y

    results = {
        float(tfsymadj.odeint(dynamics, np.ones(1), [0.0, 1.0], **options)[-1, 0])
        for options in (
            dict(method="euler", num_steps=4),
            dict(method="euler", num_steps=5),
            dict(method="euler", step_size=0.3),
            dict(method="heun", num_steps=4),
            dict(method="bosh3", rtol=1e-4, atol=1e-4),
            dict(method="bosh3", rtol=1e-4, atol=1e-5),
            dict(method="bosh3", rtol=1e-4, atol=1e-5, first_step=0.01),
        )
    }
    # step_size=0.3 makes four steps too
    assert len(results) == 6


@pytest.mark.parametrize("dtype", [tf.float32, tf.complex64])
def test_states_of_all_ranks(dtype):
    """TensorFlow may trace for an unknown rank after it has seen two; the solver needs to know."""

    def dynamics(t, y):
        return -y

    for shape in ([], [2], [3], [2, 3], [4, 3]):
        y = tfsymadj.odeint(dynamics, tf.ones(shape, dtype), [0.0, 1.0], **FIXED)
        assert y.dtype == dtype
        assert y.shape == [2, *shape]


def test_args_of_all_ranks():
    def dynamics(t, y, a):
        return -a * y

    for shape in ([], [2], [3, 2]):
        a = tf.ones(shape)
        y = tfsymadj.odeint(dynamics, tf.ones([3, 2]), [0.0, 1.0], args=a, **FIXED)
        assert y.shape == [2, 3, 2]


# Nothing stale


def test_rebound_tensor():
    a = tf.constant(1.0, tf.float64)

    def dynamics(t, y):
        return a * y

    assert end(dynamics) == pytest.approx(grow(1.0))
    a = tf.constant(2.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(a)
        y = tfsymadj.odeint(dynamics, tf.ones([], tf.float64), [0.0, 1.0], **FIXED)[-1]
    assert float(y) == pytest.approx(grow(2.0))
    assert float(tape.gradient(y, a)) == pytest.approx((1 + 2 / 4) ** 3)


def test_rebound_number():
    a = 1.0

    def dynamics(t, y):
        return a * y

    assert end(dynamics) == pytest.approx(grow(1.0))
    a = 2.0
    assert end(dynamics) == pytest.approx(grow(2.0))
    a = np.array(3.0)
    assert end(dynamics) == pytest.approx(grow(3.0))
    a[...] = 1.0  # in place
    assert end(dynamics) == pytest.approx(grow(1.0))


_GLOBAL = 1.0


def _uses_global(t, y):
    return _GLOBAL * y


def _calls_uses_global(t, y):
    return _uses_global(t, y)


@pytest.mark.parametrize("dynamics", [_uses_global, _calls_uses_global])
def test_rebound_global(monkeypatch, dynamics):
    assert end(dynamics) == pytest.approx(grow(1.0))
    monkeypatch.setitem(globals(), "_GLOBAL", 2.0)
    assert end(dynamics) == pytest.approx(grow(2.0))


def test_rebound_default_argument():
    def dynamics(t, y, a=1.0):
        return a * y

    assert end(dynamics) == pytest.approx(grow(1.0))
    dynamics.__defaults__ = (2.0,)
    assert end(dynamics) == pytest.approx(grow(2.0))


def test_rebound_in_a_nested_function():
    a = 1.0

    def factor(y):
        return a * y

    def dynamics(t, y):
        return factor(y)

    assert end(dynamics) == pytest.approx(grow(1.0))
    a = 2.0
    assert end(dynamics) == pytest.approx(grow(2.0))


def test_changed_list_and_dict():
    weights, named = [1.0], {"a": 0.0}

    def dynamics(t, y):
        return (weights[0] + named["a"]) * y

    assert end(dynamics) == pytest.approx(grow(1.0))
    weights[0] = 2.0
    assert end(dynamics) == pytest.approx(grow(2.0))
    named["a"] = 1.0
    assert end(dynamics) == pytest.approx(grow(3.0))


def test_partial():
    def dynamics(a, t, y, b=0.0):
        return (a + b) * y

    for a, b in ((1.0, 0.0), (2.0, 0.0), (2.0, 1.0)):
        assert end(functools.partial(dynamics, a, b=b)) == pytest.approx(grow(a + b))
    first, second = (tf.constant(a, tf.float64) for a in (1.0, 2.0))
    assert end(functools.partial(dynamics, first)) == pytest.approx(grow(1.0))
    assert end(functools.partial(dynamics, second)) == pytest.approx(grow(2.0))


class Model:
    def __init__(self, a):
        self.w = tf.Variable(a, dtype=tf.float64)
        self.count = 0

    def rhs(self, t, y):
        self.count += 1
        return self.w * y

    def minus(self, t, y):
        return -self.w * y


def test_bound_methods():
    one, two = Model(1.0), Model(2.0)
    for _ in range(2):
        assert end(one.rhs) == pytest.approx(grow(1.0))
        assert end(two.rhs) == pytest.approx(grow(2.0))
        assert end(one.minus) == pytest.approx(grow(-1.0))
        counts = one.count, two.count
    # A bound method is a new object each time; its trace is kept all the same.
    end(one.rhs)
    end(two.rhs)
    assert (one.count, two.count) == counts


def test_frozen_layer():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="float64")
    y0 = tf.ones([1, 1], tf.float64)

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(layer, y0, [0.0, 1.0], **FIXED)[-1]
        return tape.gradient(y, [y0, layer.kernel.value])

    dy0, dkernel = gradient()
    assert dkernel.numpy().item() == pytest.approx((1 + 1 / 4) ** 3)
    layer.trainable = False
    frozen, nothing = gradient()
    np.testing.assert_allclose(frozen, dy0)
    assert nothing is None
    layer.trainable = True
    assert gradient()[1].numpy().item() == pytest.approx((1 + 1 / 4) ** 3)


def test_dtype_policy():
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", autocast=False)
    seen = []

    def dynamics(t, y):
        seen.append(layer.compute_dtype)
        return tf.cast(layer(tf.cast(y, layer.compute_dtype)), y.dtype)

    layer.build((None, 1))
    y0 = tf.ones([1, 1])
    tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **FIXED)
    assert seen[-1] == "float32"
    layer.dtype_policy = "mixed_bfloat16"
    tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **FIXED)
    assert seen[-1] == "bfloat16"


def test_replaced_weight_of_a_module():
    class Module(tf.Module):
        def __init__(self):
            self.w = tf.Variable(1.0, dtype=tf.float64)

        def __call__(self, t, y):
            return self.w * y

    module = Module()
    assert end(module) == pytest.approx(grow(1.0))
    module.w = tf.Variable(2.0, dtype=tf.float64)
    assert end(module) == pytest.approx(grow(2.0))


# Collected


def cached():
    gc.collect()
    return len(compiled._entries)


@pytest.fixture
def empty_cache(monkeypatch):
    """What other tests have left is not counted."""
    monkeypatch.setattr(compiled, "_entries", type(compiled._entries)())
    monkeypatch.setattr(compiled, "_warned", set())


@OPTIONS
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_trace_does_not_hold_the_dynamics(options, closure):
    def solved():
        w = tf.Variable(1.0, dtype=tf.float64)

        def plain(t, y):
            return -y

        def closing(t, y):
            return -w * y

        dynamics = closing if closure else plain
        with tf.GradientTape() as tape:
            y = tfsymadj.odeint(dynamics, tf.ones(2, tf.float64), [0.0, 1.0], **options)
        tape.gradient(y, w)
        return weakref.ref(dynamics), weakref.ref(w)

    dead = solved()
    gc.collect()
    assert [x() for x in dead] == [None, None]


def test_trace_vanishes_with_a_layer(empty_cache):
    layer = keras.layers.Dense(2)
    tfsymadj.odeint(layer, tf.ones([1, 2]), [0.0, 1.0], **FIXED)
    assert cached() == 1
    dead = weakref.ref(layer)
    del layer
    gc.collect()
    assert dead() is None
    assert cached() == 0


def test_methods_of_a_dead_object():
    model = Model(1.0)
    end(model.rhs)
    end(model.minus)
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_lambdas_of_one_line_share_a_trace():
    count = [0]

    def traced():
        count[0] += 1

    for k in range(1, 5):
        w = tf.Variable(float(k), dtype=tf.float64)
        c = tf.constant(0.5 * k, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(c)
            y = end_of(lambda t, y: (traced(), c * w * y)[1])  # noqa: B023
        gradients = tape.gradient(y, [w, c])
        a = 0.5 * k * k
        assert float(y) == pytest.approx(grow(a))
        slope = (1.0 + a / 4.0) ** 3
        np.testing.assert_allclose(gradients, [slope * 0.5 * k, slope * k], rtol=1e-12)
        if k == 1:
            first = count[0]
    assert count[0] == first


def end_of(dynamics, y0=1.0):
    y0 = tf.constant(y0, tf.float64)
    return tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **FIXED)[-1]


@pytest.mark.slow
def test_python_numbers_are_kept_for_a_few_values(empty_cache):
    with pytest.warns(UserWarning, match="pass them through `args`") as warned:
        for k in range(7):
            assert end(lambda t, y, k=k: k * y) == pytest.approx(grow(k))
    assert len([x for x in warned if "pass them" in str(x.message)]) == 1
    assert cached() == 4


@pytest.mark.slow
def test_the_cache_is_bounded(empty_cache, monkeypatch):
    monkeypatch.setattr(compiled, "_MAX_ENTRIES", 3)
    functions = [lambda t, y: y, lambda t, y: 2 * y, lambda t, y: 3 * y, lambda t, y: 4 * y]
    with pytest.warns(UserWarning, match="used least recently"):
        for k in (0, 1, 2, 0, 3):
            end(functions[k])
    assert cached() == 3
    traces = Traces()
    for function in (functions[0], functions[2], traces):
        end(function)
    count = traces.count
    end(traces)
    assert traces.count == count


def test_gradient_after_the_dynamics_are_gone():
    """The tape may outlive the only reference to the dynamics."""
    w = tf.Variable(0.5, dtype=tf.float64)
    with tf.GradientTape() as tape:
        y = tfsymadj.odeint(lambda t, y: w * y, tf.ones([], tf.float64), [0.0, 1.0], **FIXED)[-1]
    gc.collect()
    np.testing.assert_allclose(tape.gradient(y, w), (1 + 0.5 / 4) ** 3)


def test_inside_a_function_nothing_is_cached(empty_cache):

    @tf.function
    def compute(y0):
        return tfsymadj.odeint(lambda t, y: -y, y0, [0.0, 1.0], **FIXED)

    compute(tf.ones([2]))
    assert cached() == 0


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_of_each_example(jit_compile):
    y0, rates = tf.constant([[1.0], [0.5], [2.0]]), tf.constant([1.0, 3.0, 0.5])

    def compute(jit_compile):
        with tf.GradientTape() as tape:
            tape.watch([y0, rates])
            y = tfsymadj.odeint(
                lambda t, y, r: -r[:, tf.newaxis] * y, y0, [0.0, 0.5, 1.0], args=(rates,),
                batch_axis=0, jit_compile=jit_compile,
            )  # fmt: skip
        return [y, *tape.gradient(y, [y0, rates])]

    for found, expected in zip(compute(jit_compile), compute(None)):
        np.testing.assert_allclose(found, expected, rtol=1e-5)

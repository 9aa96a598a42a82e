"""States and arguments: numbers, structures, dtypes, unknown ranks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import MODES, run, slow

import tfsymadj


class Nothing:
    """No number, with a name that is the same in every process."""

    def __repr__(self):
        return "nothing"


NOTHING = Nothing()


def decay(t, y):
    return -y


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


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
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

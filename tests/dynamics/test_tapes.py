"""What a tape of the dynamics holds, and derivatives that begin with it."""

import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj.dynamics.closing import close
from tfsymadj.dynamics.tapes import UNKNOWN, num_bytes, tape_of

W = tf.constant([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], tf.float64)


def tape(function, *shape, dtype=tf.float64):
    """Of dynamics of one tensor."""
    found = []

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype)])
    def trace(y):
        found.append(tape_of(close(lambda t, ys: [function(ys[0])], [y]), [y]))
        return y

    trace.get_concrete_function()
    return found[-1]


def tape_bytes(*args, **options):
    return tape(*args, **options).num_bytes


@pytest.mark.parametrize("batch", [5, None])
def test_bytes(batch):
    """The derivative of tanh needs its value, that of a product both of its factors."""
    size = UNKNOWN if batch is None else batch
    assert tape_bytes(lambda y: 2.0 * y, batch, 2) == 0
    assert tape_bytes(tf.tanh, batch, 2) == size * 2 * 8
    assert tape_bytes(lambda y: tf.tanh(y @ W) @ tf.transpose(W), batch, 2) == size * (2 + 3) * 8


def test_calls_of_functions():
    inner = tf.function(lambda y: tf.tanh(tf.tanh(y @ W) @ tf.transpose(W)))
    assert tape_bytes(inner, 5, 2) >= (5 * 3 + 5 * 2) * 8


def test_loops():
    def loop(y):
        return tf.while_loop(lambda y: tf.reduce_sum(y) > 1.0, lambda y: tf.sin(y), (y,))[0]

    assert tape(loop, 5, 2) is None


@pytest.mark.parametrize("jit_compile", [None, True])
def test_without_a_derivative(jit_compile):
    """Is no reason not to solve."""

    @tf.custom_gradient
    def negative(y):
        def backward(_):
            raise RuntimeError("no derivative")

        return -y, backward

    options = dict(num_steps=2, jit_compile=jit_compile)
    y0 = tf.constant([1.0])
    assert float(tfsymadj.odeint(lambda t, y: negative(y), y0, [0.0, 1.0], **options)[-1, 0]) < 0.4
    with pytest.raises(RuntimeError, match="no derivative"), tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: negative(y), y0, [0.0, 1.0], **options)
        tape.gradient(y, y0)


def test_no_rank():
    assert num_bytes(tf.TensorSpec(None, tf.float32)) is None
    assert num_bytes(tf.TensorSpec([2], tf.variant)) is None
    assert num_bytes(tf.TensorSpec([None, 3], tf.float32)) == UNKNOWN * 3 * 4


def halves_and_vjp(function, *shape, with_values=False):
    """Values and gradients at a time, a state and a cotangent: by halves, and by a tape."""
    y, cotangent = tf.random.stateless_normal([2, *shape], [1, 2], dtype=tf.float64)
    t = tf.constant(0.3, tf.float64)

    @tf.function
    def both(y, cotangent):
        dynamics = close(lambda t, ys: [function(t, ys[0])], [y])
        halves = tape_of(dynamics, [y], with_values).halves
        expected, values = dynamics.vjp(t, [y], [cotangent], with_values=True)

        def kept(found):
            return [x for x in tf.nest.flatten(found) if x is not None]

        def body(_, *__):
            values, activations = halves.evaluate(t, [y])
            found, again = halves.vjp(dynamics, activations, [cotangent])
            again = [tf.zeros_like(x) if z is None else z for x, z in zip(values, again)]
            return False, *values, *again, *kept(found)

        like = [*values, *values, *kept(expected)]
        loop = tf.while_loop(lambda pending, *_: pending, body, (True, *map(tf.zeros_like, like)))
        return loop[1:], [*values, *values, *kept(expected)]

    return both(y, cotangent)


V = tf.Variable([[0.5], [1.5], [2.0]], dtype=tf.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda t, y: 2.0 * y,
        lambda t, y: tf.tanh(t * (y @ W)) @ tf.transpose(W),
        lambda t, y: tf.sin(t) * tf.nn.relu(y) ** 2 + tf.where(y > t, y, t * tf.exp(y)),
        lambda t, y: tf.concat([(y @ W) @ V, y[:, :1] * tf.reduce_sum(V)], 1),
        lambda t, y: tf.gather(y, [1, 1, 0, 4, 2]) / (1.0 + tf.reduce_max(y) ** 2),
        lambda t, y: y * 0.0 + t,
    ],
)
@pytest.mark.parametrize("with_values", [False, True])
def test_halves(function, with_values):
    found, expected = halves_and_vjp(function, 5, 2, with_values=with_values)
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        if i == 1 and not with_values:
            y = tf.zeros_like(y)  # nobody needs them
        tf.debugging.assert_near(x, y, atol=1e-15, rtol=1e-15)


def test_evaluations_that_stay_whole():
    """Gradients of others belong to the trace they are from; a buffer has a known size."""

    @tf.custom_gradient
    def same(y):
        return y, lambda g: g

    for function in (tf.nn.silu, same):
        assert tape(function, 5, 2).halves is None
    assert tape(tf.tanh, None, 2).halves is None
    assert tape(tf.tanh, 5, 2).halves is not None


def test_checks_of_activations_that_are_kept():
    """What the dynamics check is checked, though operations are put into loops."""

    def dynamics(t, y):
        with tf.control_dependencies([tf.debugging.assert_less(t, 0.5, "too late")]):
            return tf.tanh(y)

    with pytest.raises(tf.errors.InvalidArgumentError, match="too late"):
        tfsymadj.odeint(dynamics, tf.ones([2]), [0.0, 1.0], method="rk4", num_steps=2)
    y0 = tf.ones([2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="too late"), tf.GradientTape() as g:
        g.watch(y0)
        tfsymadj.odeint(dynamics, y0, [0.0, 1.0], method="rk4", num_steps=2)

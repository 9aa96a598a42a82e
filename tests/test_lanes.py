"""`lanes`: many examples of which a few are worked on at a time."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.modes import partly_slow, run, slow

import tfsymadj
from tfsymadj import SymplecticAdjoint
from tfsymadj.loop.integrate import Loop

SIZE, COUNT = 3, 11
OPTIONS = dict(batch_axis=0, rtol=1e-5, atol=1e-7)
COUNTS = ("num_steps", "num_accepted", "num_rejected", "num_evaluations")


def examples(count=COUNT):
    """Initial states and rates by which one example takes many times the steps of another."""
    random = np.random.default_rng(3)
    rates = np.exp(random.normal(size=count))
    return tf.constant(random.normal(size=(count, SIZE))), tf.constant(rates)


def rows_of_times(count=COUNT):
    """Of either direction, some filled up, one of no length."""
    random = np.random.default_rng(4)
    times = np.cumsum(random.uniform(0.1, 0.5, (count, 4)), 1)
    times[1::3] *= -1.0
    times[2, 2:], times[5] = times[2, 2], times[5, 0]
    return times


def solve(t, mode="graph", count=COUNT, **options):
    """The solution, and the gradients of a sum of outputs of which no two count alike."""
    random = np.random.default_rng(5)
    w = [tf.Variable(0.7 * random.normal(size=s)) for s in ((SIZE + 1, 6), (6, SIZE))]
    y0, rates = examples(count)
    t, decay = tf.constant(t, tf.float64), tf.constant(0.3, tf.float64)

    def dynamics(t, y, parts):
        time = tf.reshape(t, [-1, 1]) * tf.ones_like(y[:, :1])
        slopes = tf.tanh(tf.concat([y, time], 1) @ w[0]) @ w[1]
        return parts["rates"][:, tf.newaxis] * slopes - parts["decay"] * y

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, t, rates, decay])
            args = (dict(rates=rates, decay=decay),)
            solution = tfsymadj.solve(dynamics, y0, t, args=args, **OPTIONS, **options)
            weights = tf.cos(tf.range(tf.size(solution.y), dtype=tf.float64))
            loss = tf.reduce_sum(tf.reshape(weights, tf.shape(solution.y)) * solution.y**2)
        return solution, tape.gradient(loss, [y0, t, rates, decay, *w])

    solution, found = run(compute, mode)
    return solution, dict(enumerate(map(np.array, found)))


CASES = [
    slow(dict(t=[0.0, 1.0], lanes=1)),
    dict(t=rows_of_times(), lanes=4),
    slow(dict(t=rows_of_times(), lanes=4, outputs="step")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, jumps=[0.7])),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, method="dop853")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, method="kvaerno3")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, method="rk4", num_steps=5)),
    slow(dict(t=[1.0, 0.0], lanes=64)),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, gradient="aca")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, gradient="backprop")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, gradient="baseline")),
    slow(dict(t=[0.0, 0.4, 1.0], lanes=4, gradient=SymplecticAdjoint(12))),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("mode", ["graph", slow("eager"), slow("xla")])
def test_what_every_example_has_a_lane_for(case, mode):
    solution, found = solve(mode=mode, **case)
    # By other products of matrices, of as many rows as there are lanes: to rounding.
    expected, gradients = solve(**{k: v for k, v in case.items() if k != "lanes"})
    assert relative_error(solution.y, expected.y) < 1e-13
    # An implicit method iterates until all lanes have converged.
    counts = COUNTS[:-1] if case.get("method") == "kvaerno3" else COUNTS
    for count in counts:
        np.testing.assert_array_equal(
            getattr(solution.stats, count), getattr(expected.stats, count)
        )
    assert relative_error(found, gradients) < FLOAT64


def test_nobody_waits(monkeypatch):
    rounds, attempt = [], Loop.attempt

    def counted(loop, carry):
        with tf.control_dependencies([tf.numpy_function(lambda: rounds.append(1), [], [])]):
            return attempt(loop, carry._replace(attempts=tf.identity(carry.attempts)))

    monkeypatch.setattr(Loop, "attempt", counted)
    rates = tf.constant(15 * [30.0, 1.0, 1.0, 1.0], tf.float64)
    y0 = tf.ones([60, 2], tf.float64)
    solution = tfsymadj.solve(
        lambda t, y, r: r[:, tf.newaxis] * tf.reverse(y, [1]) * [1.0, -1.0], y0, [0.0, 3.0],
        args=(rates,), lanes=4, gradient=tfsymadj.NoGradient(), **OPTIONS,
    )  # fmt: skip
    steps = solution.stats.num_steps.numpy()
    # By shares of four all would wait for the hard one; else the last one is waited for at most.
    assert len(rounds) <= -(-sum(steps) // 4) + max(steps) < 0.6 * sum(steps[::4])


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
def test_example_that_fails(mode):
    def dynamics(t, y, rates):
        return rates[:, tf.newaxis] * y**2

    y0, rates = tf.ones([5, 1], tf.float64), tf.constant([0.1, 0.2, 3.0, 0.3, 0.1], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(rates)
            solution = tfsymadj.solve(
                dynamics, y0, [0.0, 1.0], args=(rates,), lanes=2, on_failure="status", **OPTIONS
            )
            loss = tf.reduce_sum(tf.gather(solution.y[-1], [0, 1, 3, 4]))
        return solution, tape.gradient(loss, rates)

    solution, found = run(compute, mode)
    np.testing.assert_array_equal(solution.status != 0, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.isnan(solution.y[-1, :, 0]), [0, 0, 1, 0, 0])
    r = np.delete(rates.numpy(), 2)  # y(1) = 1 / (1 - r)
    np.testing.assert_allclose(np.delete(found.numpy(), 2), (1 - r) ** -2, rtol=1e-4)
    assert found[2] == 0.0


@pytest.mark.parametrize("mode", [slow("graph"), slow("xla")])
def test_unknown_number_of_examples(mode):
    w = tf.Variable([[0.0, 1.0], [-1.0, 0.0]], dtype=tf.float64)

    @tf.function(
        jit_compile=mode == "xla",
        input_signature=[tf.TensorSpec([None, 2], tf.float64), tf.TensorSpec([None], tf.float64)],
    )
    def compute(y0, rates):
        with tf.GradientTape() as tape:
            tape.watch([y0, rates])
            y = tfsymadj.odeint(
                lambda t, y, r: r[:, tf.newaxis] * (y @ w), y0, [0.0, 0.5, 1.0], args=(rates,),
                lanes=3, **OPTIONS,
            )  # fmt: skip
        return y, tape.gradient(y, [y0, rates, w])

    for count in (1, 3, 8):
        rates, y0 = (
            tf.linspace(tf.constant(1.0, tf.float64), 9.0, count),
            tf.ones([count, 2], tf.float64),
        )
        y, (dy0, drates, _) = compute(y0, rates)
        angle = rates * 1.0
        exact = tf.stack([tf.cos(angle) - tf.sin(angle), tf.cos(angle) + tf.sin(angle)], 1)
        np.testing.assert_allclose(y[-1], exact, atol=1e-3)
        assert dy0.shape == y0.shape and drates.shape == rates.shape
    with pytest.raises(tf.errors.InvalidArgumentError):
        compute(tf.ones([4, 2], tf.float64), tf.ones([3], tf.float64))


@pytest.mark.slow
def test_layer_that_learns():
    keras.utils.set_random_seed(0)
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), batch_axis=0, lanes=8)
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    history = model.fit(x, x[:, :1] - x[:, 1:], epochs=20, batch_size=32, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]


@pytest.mark.parametrize(
    "options",
    [
        dict(lanes=0, batch_axis=0),
        dict(lanes=True, batch_axis=0),
        dict(lanes=4),
        dict(lanes=4, batch_axis=0, event=tfsymadj.Event(lambda t, y: y[:, 0])),
    ],
    ids=["none", "boolean", "no examples", "event"],
)
def test_refused(options):
    with pytest.raises(ValueError, match="`lanes` must be a positive int.*Received"):
        tfsymadj.solve(lambda t, y: -y, tf.ones([2, 1]), [0.0, 1.0], **options)


MIXING = {
    "sum": lambda t, y, c: -y * tf.reduce_sum(c),
    "later": lambda t, y, c: -y * tf.reduce_sum(c) * tf.sin(t)[:, tf.newaxis],
    "mean": lambda t, y, c: -tf.reshape(c, [-1, 1]) * tf.ones_like(y) * tf.reduce_mean(y),
}


@pytest.mark.parametrize("width", [slow(1), 3])
@pytest.mark.parametrize("name", partly_slow(MIXING, "mean", "sum"))
@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
def test_what_examples_share_is_not_cut_up(mode, name, width):
    shared, y0 = tf.constant([0.1, 0.2, 0.3, 0.4], tf.float64), tf.ones([4, 2], tf.float64)

    def solve(shape):
        return tfsymadj.solve(
            MIXING[name], y0, [0.0, 1.0], args=(tf.reshape(shared, shape),), lanes=width,
            on_failure="status", **OPTIONS,
        )  # fmt: skip

    found = run(lambda: solve([4]), mode)
    assert np.all(found.status == tfsymadj.Status.EXAMPLES_MIXED) and np.all(np.isnan(found.y))
    if name != "mean":
        found = run(lambda: solve([1, 4]), mode)
        exact = 1.0 if name == "sum" else 1.0 - np.cos(1.0)
        assert np.all(found.status == tfsymadj.Status.SUCCESS)
        np.testing.assert_allclose(found.y[-1], np.full([4, 2], np.exp(-exact)), rtol=1e-4)


@pytest.mark.skipif(not hasattr(Exception, "add_note"), reason="notes came with Python 3.11")
def test_errors_of_what_was_cut_up_get_a_note():
    weights = tf.eye(4, dtype=tf.float64)
    with pytest.raises(Exception) as caught:
        tfsymadj.solve(
            lambda t, y, w: -y @ w, tf.ones([4, 4], tf.float64), [0.0, 1.0], args=(weights,),
            lanes=3, **OPTIONS,
        )  # fmt: skip
    assert any("With `lanes`" in note for note in caught.value.__notes__)

"""`batch_axis`: each example with steps and times of its own."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.modes import run, slow

import tfsymadj
from tfsymadj import SymplecticAdjoint

#: By how much faster one example moves than another: each takes another number of steps.
RATES = [0.5, 1.0, 4.0, 10.0]
SIZE = 3
ADAPTIVE = dict(rtol=1e-5, atol=1e-7, max_steps=80)

SHARED = np.array([0.0, 0.3, 0.7, 1.5])
#: Rows of either direction, one filled up, one of no length at all.
OWN = np.array(
    [[0.0, 0.3, 0.7, 1.5], [0.0, -0.1, -0.5, -0.9], [1.0, 2.0, 2.5, 2.5], [0.5, 0.5, 0.5, 0.5]]
)


def variables(seed=0):
    random = np.random.default_rng(seed)
    shapes = (SIZE + 1, 8), (8, SIZE)
    return [tf.Variable(0.8 * random.normal(size=shape)) for shape in shapes]


def network(weights):
    """Time-dependent dynamics of examples that don't mix, with a rate for each."""

    def dynamics(t, y, rates):
        time = tf.reshape(t, [-1, 1]) * tf.ones_like(y[:, :1])
        slopes = tf.tanh(tf.concat([y, time], 1) @ weights[0]) @ weights[1]
        return rates[:, tf.newaxis] * slopes

    return dynamics


def start():
    random = np.random.default_rng(1)
    return tf.constant(random.normal(size=(len(RATES), SIZE)))


def loss(y):
    """A number that no two outputs have the same part in."""
    weights = tf.cos(tf.cast(tf.range(SIZE * tf.shape(y)[0]), y.dtype))
    return tf.reduce_sum(tf.reshape(weights, [-1, 1, SIZE]) * y * y)


def solve(y0, t, rates, mode="graph", **options):
    """The solution, and the gradients of its `loss` by name."""
    weights = variables()
    t = tf.constant(t, tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, t, rates])
            solution = tfsymadj.solve(network(weights), y0, t, args=(rates,), **options)
            value = loss(solution.y)
        return solution, tape.gradient(value, [y0, t, rates, *weights])

    solution, found = run(compute, mode)
    return solution, dict(zip(("y0", "t", "rates", "w0", "w1"), map(np.array, found)))


@functools.cache
def solve_alone(outputs):
    """What `solve` returns for a batch, from a solve for each example."""
    rates, y0, solutions, found = tf.constant(RATES, tf.float64), start(), [], []
    for b in range(len(RATES)):
        one, gradients = solve(y0[b : b + 1], SHARED, rates[b : b + 1], outputs=outputs, **ADAPTIVE)
        solutions.append(one)
        found.append(gradients)
    y = np.concatenate([s.y for s in solutions], 1)
    joined = {name: np.concatenate([g[name] for g in found]) for name in ("y0", "rates")}
    summed = {name: sum(g[name] for g in found) for name in ("t", "w0", "w1")}
    return y, solutions, joined | summed


GRADIENTS = [
    slow(SymplecticAdjoint("sqrt")),
    SymplecticAdjoint(),
    slow(SymplecticAdjoint("steps")),
    slow(SymplecticAdjoint("stages")),
    slow(SymplecticAdjoint(11)),
    slow(SymplecticAdjoint(20)),
    slow(SymplecticAdjoint(memory="6 KiB")),
    slow("aca"),
    slow("backprop"),
    slow("baseline"),
]


@pytest.mark.parametrize("outputs", [slow("step"), "interpolate"])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_each_example_is_solved_as_if_it_were_alone(gradient, outputs):
    options = dict(gradient=gradient, outputs=outputs, **ADAPTIVE)
    y, alone, expected = solve_alone(outputs)
    solution, found = solve(
        start(), SHARED, tf.constant(RATES, tf.float64), batch_axis=0, **options
    )
    assert relative_error(solution.y, y) < 1e-13
    for count in ("num_steps", "num_accepted", "num_rejected", "num_evaluations"):
        counts = [int(getattr(one.stats, count)) for one in alone]
        np.testing.assert_array_equal(getattr(solution.stats, count), counts)
    assert len(set(solution.stats.num_accepted.numpy())) == len(RATES)
    assert relative_error(found, expected) < FLOAT64


METHODS = [
    slow(dict(method="rk4", num_steps=3)),
    dict(method="heun", step_size=0.17),
    slow(dict(method="bosh3", **ADAPTIVE | dict(max_steps=300))),
    slow(dict(method="dop853", **ADAPTIVE)),
    slow(dict(method="tsit5", **ADAPTIVE)),
    slow(dict(method="fehlberg45", **ADAPTIVE)),
    slow(dict(method="dopri5", num_steps=2)),
    slow(dict(method="kvaerno3", **ADAPTIVE | dict(max_steps=300))),
    slow(dict(method="gauss4", num_steps=2)),
    slow(dict(method="dopri5", max_step=0.1, first_step=0.01, **ADAPTIVE)),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", METHODS, ids=lambda x: "-".join(map(str, x.values())))
def test_rows_of_times_go_their_own_ways(options):
    rates, counts = tf.constant(RATES, tf.float64), [4, 4, 3, 1]
    solution, found = solve(start(), OWN, rates, batch_axis=0, **options)
    _, expected = solve(start(), OWN, rates, batch_axis=0, gradient="backprop", **options)
    assert relative_error(found, expected) < FLOAT64
    assert solution.y.shape == (4, 4, SIZE) and solution.t.shape == OWN.shape
    for b, count in enumerate(counts):
        y = solution.y[:, b]
        np.testing.assert_array_equal(y[count:], np.repeat(y[count - 1 : count], 4 - count, 0))
        if count == 1:
            np.testing.assert_array_equal(y[0], start()[b])
            assert solution.stats.num_steps[b] == 0
            continue
        one = tfsymadj.solve(
            network(variables()), start()[b : b + 1], OWN[b, :count], args=(rates[b : b + 1],),
            gradient=tfsymadj.NoGradient(), **options,
        )  # fmt: skip
        assert relative_error(y[:count], one.y[:, 0]) < 1e-13
        assert solution.stats.num_accepted[b] == one.stats.num_accepted


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["xla", "eager"])
def test_modes_agree(mode):
    rates = tf.constant(RATES, tf.float64)
    _, expected = solve(start(), OWN, rates, batch_axis=0, gradient="backprop", **ADAPTIVE)
    _, found = solve(start(), OWN, rates, mode, batch_axis=0, **ADAPTIVE)
    assert relative_error(found, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["step", slow("interpolate")])
@pytest.mark.parametrize("num_times", [slow(2), 4])
def test_sizes_may_be_unknown_when_the_solve_is_traced(num_times, outputs):
    options = dict(batch_axis=0, outputs=outputs, **ADAPTIVE)
    rates, weights = tf.constant(RATES, tf.float64), variables()
    t = OWN[:, [0, 3]] if num_times == 2 else OWN
    specs = [tf.TensorSpec([None, SIZE], tf.float64), tf.TensorSpec([None, None], tf.float64)]

    @tf.function(input_signature=specs)
    def gradient(y0, t):
        with tf.GradientTape() as tape:
            tape.watch([y0, t])
            y = tfsymadj.odeint(network(weights), y0, t, args=(rates,), **options)
            value = loss(y)
        return tape.gradient(value, [y0, t, *weights])

    found = gradient(start(), tf.constant(t))
    _, expected = solve(start(), t, rates, **options)
    del expected["rates"]
    assert relative_error(dict(zip(expected, found)), expected) < FLOAT64
    with pytest.raises(tf.errors.InvalidArgumentError, match="rows_of_t"):
        gradient(start(), tf.constant(t[:2]))


def states(y0):
    """A nest of a real, a complex part and one that nothing depends on."""
    random = np.random.default_rng(2)
    z0 = tf.constant(random.normal(size=(len(RATES), 2)) + 0.5j)
    return {"y": y0, "z": z0, "length": tf.zeros([len(RATES)], tf.float64)}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["auto", 11, "steps", "stages"])
def test_states_may_be_nests(checkpoints):
    rates, weight = tf.constant(RATES, tf.float64), tf.Variable([[0.3, 1.0], [-1.0, 0.2]])

    def dynamics(t, state):
        turn = tf.complex(tf.zeros_like(t), rates * tf.cos(t))[:, tf.newaxis]
        z = tf.abs(state["z"] @ tf.cast(weight, tf.complex128))
        slope = tf.sin(state["y"]) * tf.reduce_sum(z, 1, keepdims=True)
        return {"y": slope, "z": turn * state["z"], "length": tf.reduce_sum(slope**2, 1)}

    def gradient(method, y0, **options):
        with tf.GradientTape() as tape:
            tape.watch([y0, rates])
            y = tfsymadj.odeint(
                dynamics, states(y0), OWN, batch_axis=0, gradient=method, **ADAPTIVE
            )
            value = tf.reduce_sum(y["length"] ** 2) + tf.reduce_sum(tf.math.real(y["z"]) ** 2)
        return [np.array(x) for x in tape.gradient(value, [y0, rates, weight])]

    found = gradient(SymplecticAdjoint(checkpoints), start())
    expected = gradient("backprop", start())
    # The weight is single precision, and so is its gradient.
    for a, b, tolerance in zip(found, expected, (FLOAT64, FLOAT64, 1e-6)):
        assert relative_error(a, b) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("options", [slow(ADAPTIVE), dict(method="rk4", num_steps=3)], ids=str)
@pytest.mark.parametrize("outputs", ["step", slow("interpolate")])
def test_jumps_of_each_example(options, outputs):
    # One of them where an output is, one twice, one outside of the times, in any order.
    jumps = tf.constant([[0.9, 0.3], [-0.4, -0.4], [2.2, 7.0], [9.0, 9.0]], tf.float64)
    options = options | ({} if "num_steps" in options else dict(outputs=outputs))

    def dynamics(t, y, jumps):
        early, late = tf.unstack(tf.where(t >= tf.transpose(jumps), 1.0, 0.0))
        level = tf.cast(1.0 - 3.0 * early + 2.0 * late, tf.float64)
        return tf.cos(5.0 * t[:, tf.newaxis]) * y + level[:, tf.newaxis]

    def gradient(y0, jumps, t, method, axis):
        with tf.GradientTape() as tape:
            tape.watch([y0, jumps])
            y = tfsymadj.odeint(
                dynamics if axis == 0 else lambda t, y, j: dynamics(t[tf.newaxis], y, j),
                y0, t, args=(tf.stop_gradient(jumps),), gradient=method, batch_axis=axis,
                jumps=jumps if axis == 0 else jumps[0], **options,
            )  # fmt: skip
            value = loss(y)
        return y, tape.gradient(value, [y0, jumps])

    y, found = gradient(start(), jumps, OWN, "symplectic_adjoint", 0)
    _, expected = gradient(start(), jumps, OWN, "backprop", 0)
    for a, b in zip(found, expected):
        assert relative_error(a, b) < FLOAT64
    for b, count in enumerate([4, 4, 3]):
        one, (_, alone) = gradient(
            start()[b : b + 1], jumps[b : b + 1], OWN[b, :count], "symplectic_adjoint", None
        )
        assert relative_error(y[:count, b], one[:, 0]) < 1e-13
        if count == 4:  # else the last output counts once more
            np.testing.assert_allclose(found[1][b : b + 1], alone, rtol=1e-10)
    assert not np.any(found[1][3])
    np.testing.assert_array_equal(y[:, 3], np.repeat(start()[3:], 4, 0))


@pytest.mark.parametrize(
    "mode, options",
    [
        slow("graph", ADAPTIVE),
        slow("xla", ADAPTIVE),
        slow("graph", dict(outputs="step", gradient=SymplecticAdjoint(11), **ADAPTIVE)),
        ("graph", dict(method="rk4", num_steps=9)),
        slow("graph", dict(method="dop853", **ADAPTIVE)),
    ],
)
@pytest.mark.parametrize("terminal", [True, slow(False)])
def test_events_of_each_example(mode, options, terminal):
    frequencies = tf.constant([1.3, 0.6, 2.9, 0.01], tf.float64)  # the last one has none
    level = tf.constant([0.1, 0.2, -0.3, 0.0], tf.float64)
    y0 = tf.constant([[1.0, 0.0], [1.0, 0.3], [0.8, 0.0], [1.0, 0.0]], tf.float64)
    t = np.linspace(0.0, 4.0, 9)

    def solve(axis, y0, w, level):
        def dynamics(t, y, w):
            return tf.stack([y[..., 1], -w * w * y[..., 0]], -1)

        def compute():
            event = tfsymadj.Event(
                lambda t, y, level: y[..., 0] - level, terminal=terminal, args=(level,)
            )
            with tf.GradientTape() as tape:
                tape.watch([y0, w, level])
                solution = tfsymadj.solve(
                    dynamics, y0, t, args=(w,), event=event, batch_axis=axis, **options
                )
                found, zero = solution.event, tf.zeros([], tf.float64)
                value = tf.reduce_sum(tf.where(found.index >= 0, found.t, zero))
                some = tf.reshape(found.index >= 0, [-1, 1])
                value += tf.reduce_sum(tf.where(some, tf.reshape(found.y, [-1, 2]), zero) ** 2)
                reached = tf.where(tf.math.is_nan(solution.y), zero, solution.y)
                value += tf.reduce_sum(reached**2)
            return solution, tape.gradient(value, [y0, w, level])

        return run(compute, mode)

    solution, found = solve(0, y0, frequencies, level)
    assert list(solution.event.index.numpy()) == [0, 0, 0, -1]
    assert solution.success.numpy().all()
    for b in (0, 3):
        one, alone = solve(None, y0[b], frequencies[b], level[b])
        np.testing.assert_allclose(solution.event.t[b], one.event.t, rtol=1e-12)
        np.testing.assert_allclose(solution.event.y[b], one.event.y, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(solution.y[:, b], one.y, rtol=1e-11, atol=1e-14)
        assert solution.stats.num_accepted[b] == one.stats.num_accepted
        for a, c in zip(found, alone):
            np.testing.assert_allclose(a[b], c, rtol=1e-9, atol=1e-11)


def blow_up(t, y, rates):
    """Infinite before the time 1 where the rate is at least 1 and y starts from 1."""
    return rates[:, tf.newaxis] * y * y


@pytest.mark.parametrize(
    "gradient, outputs, mode",
    [
        ("symplectic_adjoint", "step", "graph"),
        slow("symplectic_adjoint", "interpolate", "xla"),
        slow("symplectic_adjoint", "step", "eager"),
        slow("symplectic_adjoint", "interpolate", "graph"),
        slow("backprop", "step", "graph"),
        slow("aca", "interpolate", "graph"),
    ],
)
def test_an_example_that_fails_leaves_the_others_alone(gradient, outputs, mode):
    weight = tf.Variable(1.0, dtype=tf.float64)
    options = dict(on_failure="status", rtol=1e-6, outputs=outputs, gradient=gradient)
    t = [0.0, 0.5, 1.0]

    def solve(rates, batch_axis, wanted):
        y0 = tf.ones([tf.size(rates), 1], tf.float64)

        def compute():
            with tf.GradientTape() as tape:
                tape.watch([y0, rates])
                solution = tfsymadj.solve(
                    lambda t, y, rates: weight * blow_up(t, y, rates),
                    y0, t, args=(rates,), batch_axis=batch_axis, **options,
                )  # fmt: skip
                value = tf.reduce_sum(tf.gather(solution.y, wanted, axis=1))
            return solution, tape.gradient(value, [y0, rates, weight])

        return run(compute, mode)

    rates = tf.constant([0.5, 3.0, -1.0, 2.5], tf.float64)
    solution, (dy0, drates, dweight) = solve(rates, 0, [0, 2])
    assert list(solution.success.numpy()) == [True, False, True, False]
    assert np.isnan(solution.y[1:, 1]).all() and np.isnan(solution.y[1:, 3]).all()
    good, (gy0, grates, gweight) = solve(tf.gather(rates, [0, 2]), 0, [0, 1])
    assert relative_error(tf.gather(solution.y, [0, 2], axis=1), good.y) < 1e-13
    assert relative_error(tf.gather(dy0, [0, 2]), gy0) < FLOAT64
    assert relative_error(tf.gather(drates, [0, 2]), grates) < FLOAT64
    assert relative_error(dweight, gweight) < FLOAT64
    # No gradient was asked for, and none is made up.
    assert not np.any(np.array(dy0)[[1, 3]])
    _, (dy0, _, dweight) = solve(rates, 0, [0, 1, 2, 3])
    assert np.isnan(dy0[1]).all() and np.isnan(dy0[3]).all() and np.isnan(dweight)
    assert np.isfinite(tf.gather(dy0, [0, 2])).all()


def test_repr():
    rates = tf.constant([0.5, 3.0], tf.float64)
    y0 = tf.ones([2, 1], tf.float64)
    solution = tfsymadj.solve(
        blow_up, y0, [0.0, 1.0], args=(rates,), batch_axis=0, on_failure="status"
    )
    assert repr(solution).startswith("<Solution: 1 of 2 examples a success, y: float64 (2, 2, 1)")


def test_the_message_tells_which_example_failed_first():
    rates = tf.constant([0.5, 3.0, 0.1, 2.0], tf.float64)

    def solve():
        y0 = tf.ones([4, 1], tf.float64)
        return tfsymadj.odeint(blow_up, y0, [0.0, 1.0], args=(rates,), batch_axis=0)

    with pytest.raises(tf.errors.InvalidArgumentError, match="t = 0.33.* example 1.* 2 that fail"):
        solve()
    with pytest.raises(tf.errors.InvalidArgumentError, match="STEP_UNDERFLOW"):
        tf.function(solve)()


def test_rows_of_times_must_be_monotonic():
    y0 = tf.ones([2, 1], tf.float64)
    bad = [[0.0, 1.0, 0.5], [0.0, 1.0, 2.0]]
    with pytest.raises(ValueError, match="`t` must be finite and strictly"):
        tfsymadj.odeint(lambda t, y: -y, y0, bad, batch_axis=0)
    # Only the last time may be repeated.
    with pytest.raises(ValueError, match="`t` must be finite and strictly"):
        tfsymadj.odeint(lambda t, y: -y, y0, [[0.0, 0.0, 0.5], [0.0, 1.0, 2.0]], batch_axis=0)
    solution = tf.function(tfsymadj.solve)(
        lambda t, y: -y, y0, tf.constant(bad), batch_axis=0, on_failure="status"
    )
    assert list(solution.status.numpy()) == [tfsymadj.Status.TIMES_NOT_MONOTONIC, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(batch_axis=1), "`batch_axis` must be 0"),
        (dict(batch_axis=0, y0=[1.0, tf.ones([2])]), "`y0` must have the same first axis"),
        (dict(batch_axis=0, y0=tf.ones([])), "`y0` must have the same first axis"),
        (dict(batch_axis=0, t=tf.ones([3, 2])), "`t` must have a row for each"),
        (dict(t=[[0.0, 1.0]]), "`t` must be 1-D"),
        (dict(batch_axis=0, dense=True), "can't be given together with `dense`"),
        (dict(jumps=[[0.5], [0.6]]), "`jumps` must be 1-D"),
        (dict(batch_axis=0, outputs="steps"), "can't be given together with"),
        (dict(batch_axis=0, gradient="continuous_adjoint"), "`gradient` can't be"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = dict(y0=tf.ones([2, 1]), t=[0.0, 1.0]) | change
    with pytest.raises(ValueError, match=message):
        tfsymadj.odeint(lambda t, y: y, **arguments)


def test_where_there_is_no_batch_axis():
    with pytest.raises(ValueError, match="`batch_axis` is no option of `steady_state`"):
        tfsymadj.steady_state(lambda t, y: -y, tf.ones([2, 1]), batch_axis=0)
    with pytest.raises(ValueError, match="`t` must be 1-D"):
        tfsymadj.ODELayer(keras.layers.Dense(1), t=[[0.0, 1.0], [0.0, 2.0]], batch_axis=0)
    with pytest.raises(ValueError, match="tf.vectorized_map"):
        tf.vectorized_map(
            lambda y: tfsymadj.odeint(
                lambda t, y: -y, y, [0.0, 1.0], method="rk4", num_steps=2, batch_axis=0
            ),
            tf.ones([3, 2, 1]),
        )


@pytest.mark.slow
def test_export(tmp_path):
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), batch_axis=0, rtol=1e-6)
    model = keras.Sequential([keras.Input((2,)), layer])
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6)
    without = tfsymadj.odeint(
        lambda t, y: -y, x, [0.0, 1.0], method="rk4", num_steps=9, batch_axis=0,
        gradient=tfsymadj.NoGradient(),
    )  # fmt: skip
    np.testing.assert_allclose(without[-1], x * np.exp(-1.0), rtol=1e-5)


def test_an_easy_example_among_hard_ones_is_as_accurate_as_alone():
    rates = np.array([60.0] + 200 * [0.01])
    y0 = tf.ones([rates.size, 1], tf.float64)

    def dynamics(t, y):
        return -tf.constant(rates[:, np.newaxis]) * (y - tf.cos(tf.reshape(t, [-1, 1])))

    options = dict(rtol=1e-6, atol=1e-8, outputs="step")
    exact = tfsymadj.odeint(dynamics, y0, [0.0, 0.5], rtol=1e-13, atol=1e-14, method="dop853")
    own, shared = (
        tfsymadj.odeint(dynamics, y0, [0.0, 0.5], batch_axis=axis, **options) for axis in (0, None)
    )
    error, average = (float(abs(y[-1, 0, 0] - exact[-1, 0, 0])) for y in (own, shared))
    assert error < 1e-5 and error < 0.3 * average


class TestLayers:
    times = np.array([[0.0, 0.4, 1.0], [0.0, 0.7, 0.7], [1.0, 1.3, 2.0]])

    def layer(self, **options):
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense(2, "tanh")
        return tfsymadj.ODELayer(
            tfsymadj.layers.ConcatTime(dense), batch_axis=0, return_sequences=True, **options
        )

    def test_times_of_each_example(self):
        layer, y0 = self.layer(), np.ones((3, 2), "float32")
        y = layer(y0, t=self.times)
        assert y.shape == (3, 3, 2)
        np.testing.assert_array_equal(y[1, 1], y[1, 2])
        for b, count in enumerate((3, 2, 3)):
            alone = layer(y0[b : b + 1], t=self.times[b, :count])
            np.testing.assert_allclose(y[b, :count], alone[0], atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_functional_models_fit(self, jit_compile, tmp_path):
        state, times = keras.Input((2,)), keras.Input((3,))
        outputs = keras.layers.Dense(1)(self.layer(track_stats=True, name="ode")(state, t=times))
        assert outputs.shape == (None, 3, 1)
        model = keras.Model([state, times], outputs)
        model.compile("adam", "mse", jit_compile=jit_compile)
        x = [np.ones((3, 2), "float32"), self.times.astype("float32")]
        y = np.ones((3, 3, 1), "float32")
        history = model.fit(x, y, epochs=2, verbose=0).history
        assert history["loss"][1] < history["loss"][0]
        assert history["ode_accepted_steps"][0] > 1
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0))

    def test_a_mask_of_times_tells_which_count(self):
        layer, y0 = self.layer(), np.ones((3, 2), "float32")
        padded = tf.constant([[0.0, 0.4, 1.0], [0.0, 0.7, -1.0], [1.0, 1.3, 2.0]])
        padded._keras_mask = padded >= 0.0
        np.testing.assert_allclose(layer(y0, t=padded), layer(y0, t=self.times), atol=1e-6)


@pytest.mark.slow
def test_a_flow_with_steps_of_each_example():
    pytest.importorskip("tensorflow_probability")
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)]
    dynamics = keras.Sequential(layers)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 2)), tf.float32)
    own, shared = (
        tfsymadj.bijectors.CNF(dynamics, rtol=1e-6, atol=1e-6, batch_axis=axis)
        for axis in (0, None)
    )
    np.testing.assert_allclose(own.inverse(x), shared.inverse(x), atol=1e-5)
    dets = [f.inverse_log_det_jacobian(x, event_ndims=1) for f in (own, shared)]
    np.testing.assert_allclose(*dets, atol=1e-5)


def test_more_steps_than_memory_is_refused():
    def lost(y0):
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(lambda t, y: -y, y0, [0.0, 1.0], batch_axis=0, max_steps=100_000)
        return tape.gradient(y, y0)

    with pytest.raises(ValueError, match="`lanes` for fewer examples.*Received: max_steps"):
        tf.function(lost)(tf.ones([10_000, 1]))


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
@pytest.mark.parametrize("outputs", ["step", slow("interpolate")])
def test_no_examples_at_all(outputs, mode):
    y0 = tf.ones([0, SIZE], tf.float64)
    solution, found = solve(y0, SHARED, y0[:, 0], mode, batch_axis=0, outputs=outputs, **ADAPTIVE)
    assert solution.y.shape == (4, 0, SIZE) and solution.status.shape == (0,)
    assert found["y0"].shape == (0, SIZE) and not np.any(found["w0"])

"""The continuous normalizing flow as a bijector."""

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from helpers.flows import Field, normal, points
from helpers.gradients import relative_error
from helpers.modes import MODES, XLA_SLOW, run, slow

import tfsymadj
from tfsymadj.bijectors import CNF

tfb, tfd = tfp.bijectors, tfp.distributions
FIXED = dict(method="heun", num_steps=3)
FINE = dict(method="rk4", num_steps=40)
TIGHT = dict(method="dopri5", rtol=1e-9, atol=1e-9)


# The map and its determinant


def jacobian(function, x):
    """The Jacobian of each sample, `[batch, size, size]`; no sample depends on another one."""
    rows = []
    for k in range(x[0].shape.num_elements()):
        # Not one persistent tape, for which TensorFlow traces second derivatives too.
        with tf.GradientTape() as tape:
            tape.watch(x)
            row = tf.reduce_sum(tf.reshape(function(x), [x.shape[0], -1])[:, k])
        rows.append(tf.reshape(tape.gradient(row, x), [x.shape[0], -1]))
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 2.5), (0.5, -1.0)], ids=str)
def test_log_det_is_that_of_the_jacobian(t):
    flow, x = CNF(Field(), t, **FINE), points(4, 3)
    _, expected = np.linalg.slogdet(jacobian(flow.forward, x))
    fldj = flow.forward_log_det_jacobian(x)
    assert relative_error(fldj, expected) < 1e-6
    y = tf.identity(flow.forward(x))  # not known to the cache
    assert relative_error(flow.inverse(y), x) < 1e-6
    assert relative_error(-flow.inverse_log_det_jacobian(y), fldj) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_linear_dynamics(mode):
    matrix = np.array([[0.3, -0.5], [0.8, -0.1]])
    flow = CNF(lambda t, y: y @ matrix.T, (0.5, 2.0), **TIGHT)
    x = points(3, 2)
    y, log_det = run(lambda: (flow.forward(x), flow.forward_log_det_jacobian(x)), mode)
    assert relative_error(y, x.numpy() @ scipy.linalg.expm(1.5 * matrix).T) < 1e-7
    assert relative_error(log_det, np.full(3, 1.5 * 0.2)) < 1e-7


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)], ids=str)
def test_batch_shapes(batch):
    field, x = Field(), points(*batch, 3)
    flow = CNF(field, **FIXED)
    y = flow.forward(x)
    assert y.shape == x.shape
    assert flow.forward_log_det_jacobian(x).shape == batch
    flat = flow.forward(tf.reshape(x, [-1, 3]))
    assert relative_error(tf.reshape(y, [-1, 3]), flat) < 1e-15


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_events_of_higher_rank(trace):
    conv = keras.Sequential(
        [
            keras.Input([3, 3, 2]),
            keras.layers.Conv2D(4, 2, padding="same", activation="tanh"),
            keras.layers.Conv2D(2, 2, padding="same"),
        ]
    )
    flow = CNF(conv, trace=trace, event_ndims=3, method="heun", num_steps=20)
    x = points(2, 2, 3, 3, 2, dtype=tf.float32)
    y = flow.forward(x)
    fldj = flow.forward_log_det_jacobian(x)
    assert y.shape == x.shape and fldj.shape == (2, 2)
    assert relative_error(flow.inverse(tf.identity(y)), x) < 1e-3
    if trace == "exact":
        _, expected = np.linalg.slogdet(jacobian(flow.forward, tf.reshape(x, [4, 3, 3, 2])))
        assert relative_error(tf.reshape(fldj, [4]), expected) < 1e-3


def test_input_of_too_few_axes():
    with pytest.raises(ValueError, match=r"at least 2 axes.*Received: shape \(3,\)"):
        CNF(Field(), event_ndims=2, **FIXED)._integrate(points(3), False)


# TensorFlow Probability's cache


def test_one_solve_for_value_and_log_det(solves):
    flow = CNF(Field(), **FIXED)
    distribution = tfd.TransformedDistribution(normal(), flow)
    distribution.log_prob(points(2, 3))
    assert len(solves) == 1
    tf.function(distribution.log_prob)(points(2, 3))
    assert len(solves) == 2
    x = points(2, 3)
    y = flow.forward(x)
    flow.forward_solution(x), flow.forward_log_det_jacobian(x), flow.inverse(y)
    assert len(solves) == 3
    distribution.experimental_sample_and_log_prob(2)
    assert len(solves) == 4


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: tfb.Chain([f]), tfb.Invert])
def test_value_after_an_assignment_is_new(wrap, solves):
    field, x = Field(), points(2, 3)
    flow = wrap(CNF(field, **FIXED))
    y, _ = flow.forward(x), flow.forward_log_det_jacobian(x)
    assert len(solves) == 1
    field.w0.assign(0.5 * field.w0)
    new, new_log_det = flow.forward(x), flow.forward_log_det_jacobian(x)
    assert len(solves) == 2
    fresh, z = wrap(CNF(field, **FIXED)), tf.identity(x)
    assert relative_error(new, fresh.forward(z)) == 0.0
    assert relative_error(new_log_det, fresh.forward_log_det_jacobian(z)) == 0.0
    assert relative_error(new, y) > 1e-3


@pytest.mark.parametrize("compiled", [False, True])
def test_value_after_an_assignment_in_the_same_graph(compiled):
    field, x = Field(), points(2, 3)
    flow = tfb.Chain([CNF(field, **FIXED)])

    @tf.function(jit_compile=compiled)
    def before_and_after(x):
        y = flow.forward(x)
        field.w0.assign(0.5 * field.w0)
        return y, flow.forward(x)

    old, new = before_and_after(x)
    assert relative_error(new, flow.forward(tf.identity(x))) < 1e-14
    assert relative_error(new, old) > 1e-3


@pytest.mark.parametrize(
    "order, mode",
    [
        ("before", "eager"),
        slow("before", "graph"),
        slow("nested", "eager"),
        ("nested", "graph"),
        ("after", "eager"),
        slow("after", "graph"),
    ],
)
def test_tapes_get_their_own_solve(order, mode):
    """A result computed while a tape did not record has no gradient there."""
    field, x = Field(), points(2, 3)
    flow = tfb.Chain([CNF(field, **FIXED)])

    def compute():
        if order == "before":
            y = flow.forward(x)
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(flow.forward(x)) + tf.reduce_sum(
                    flow.forward_log_det_jacobian(x)
                )
            return y, tape.gradient(value, field.w0)
        if order == "nested":
            with tf.GradientTape():
                y = flow.forward(x)
                with tf.GradientTape() as tape:
                    value = tf.reduce_sum(flow.forward(x))
            return y, tape.gradient(value, field.w0)
        with tf.GradientTape():
            y = flow.forward(x)
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(flow.forward(x))
        return y, tape.gradient(value, field.w0)

    _, gradient = run(compute, mode)
    assert gradient is not None and bool(tf.reduce_any(gradient != 0.0))


def test_a_cached_flow_is_collected():
    import gc
    import weakref

    flow = CNF(Field(), **FIXED)
    x = points(2, 3)
    y = flow.forward(x)
    references = [weakref.ref(x), weakref.ref(y), weakref.ref(flow._field)]
    del x, y, flow
    gc.collect()
    assert [r() for r in references] == [None, None, None]


# Variables


def keras_field():
    return keras.Sequential(
        [keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)]
    )


def tf_keras_field():
    layers = tf_keras.layers
    return tf_keras.Sequential([layers.Input([3]), layers.Dense(4, "tanh"), layers.Dense(3)])


def module_field():
    return Field(dtype=tf.float32)


def function_field():
    field = keras_field()
    return lambda t, y: field(y)


@pytest.mark.parametrize("make", [keras_field, tf_keras_field, module_field, function_field])
def test_variables_are_seen_and_trained(make):
    field = make()
    options = dict(autonomous=True) if make is tf_keras_field else {}
    flow = CNF(field, (1.0, 0.0), name="flow", **FIXED, **options)
    count = 2 if make is module_field else 4
    base = normal(dtype=tf.float32)
    distribution = tfd.TransformedDistribution(base, tfb.Chain([flow, tfb.Scale(2.0)]))
    joint = tfd.JointDistributionSequential([distribution])
    holders = [flow, tfb.Chain([flow]), tfb.Invert(flow), distribution, joint]
    assert [len(x.trainable_variables) for x in holders] == [count] * 5

    variables = distribution.trainable_variables
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)
    x = 0.3 * points(32, 3, dtype=tf.float32) + 1.0

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(distribution.log_prob(x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    losses = [float(step()) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.3


def test_frozen_weights_are_no_trainable_variables():
    field = keras_field()
    field.layers[0].trainable = False
    assert len(CNF(field, **FIXED).trainable_variables) == 2


def test_trainable_time():
    end = tf.Variable([0.0, 1.0], dtype=tf.float64)
    flow = CNF(lambda t, y: -y, end, **FIXED)
    assert flow.trainable_variables == (end,)
    with tf.GradientTape() as tape:
        y = flow.forward(points(2, 3))
    assert bool(tf.reduce_all(tape.gradient(y, end) != 0.0))
    x = points(2, 3)
    y = flow.forward(x)
    end.assign([0.0, 2.0])
    assert relative_error(flow.forward(x), y) > 1e-3


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_unbuilt_dynamics_are_refused(library):
    with pytest.raises(ValueError, match="`dynamics` must have their weights.*Received: layer"):
        CNF(library.layers.Dense(3))


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints, states", [("sqrt", 16), ("auto", 64)])
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_memory_of_a_chain(mode, checkpoints, states):
    """The backward pass of one component at a time: more of them add their checkpoints only."""
    batch, size, hidden, steps = 512, 16, 128, 64

    def peak(count):
        flows = []
        for k in range(count):
            layers = [
                keras.Input([size]),
                keras.layers.Dense(hidden, "tanh"),
                keras.layers.Dense(size),
            ]
            flows.append(
                CNF(
                    keras.Sequential(layers),
                    trace="hutchinson",
                    name=f"flow_{k}",
                    method="rk4",
                    num_steps=steps,
                    gradient=tfsymadj.SymplecticAdjoint(checkpoints),
                )
            )
        distribution = tfd.TransformedDistribution(normal(size, tf.float32), tfb.Chain(flows))
        variables = distribution.trainable_variables

        @tf.function(jit_compile=mode == "xla")
        def compute(x):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(distribution.log_prob(x))
            return tape.gradient(value, variables)

        x = points(batch, size, dtype=tf.float32)
        compute(x)
        before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        tf.config.experimental.reset_memory_stats("CPU:0")
        compute(x)
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before

    state = 4 * batch * (size + 1)
    weights = 4 * (2 * size * hidden + size + hidden)
    # States kept; ends, noise and cotangents of a component; its gradients.
    assert peak(4) - peak(1) < 3 * ((states + 12) * state + 4 * weights)


# Conditions


@pytest.mark.parametrize("batch", [slow(()), (4,), slow((2, 2))], ids=str)
def test_conditions(batch):
    field, x = Field(), points(*batch, 3)
    c = points(*batch, 1, seed=2)
    flow = CNF(field, **TIGHT)
    y = flow.forward(x, condition=c)
    assert relative_error(flow.inverse(tf.identity(y), condition=c), x) < 1e-7
    expected = tfsymadj.odeint(
        field, tf.reshape(x, [-1, 3]), [0.0, 1.0], args=tf.reshape(c, [-1, 1]), **TIGHT
    )[-1]
    assert relative_error(tf.reshape(y, [-1, 3]), expected) < 1e-7


def test_conditions_in_chains_and_distributions():
    field, x, c = Field(), points(4, 3), points(4, 1, seed=2)
    chain = tfb.Chain([CNF(field, name="one", **FIXED), CNF(Field(seed=5), name="two", **FIXED)])
    distribution = tfd.TransformedDistribution(normal(), chain)
    with tf.GradientTape() as tape:
        tape.watch(c)
        value = distribution.log_prob(x, bijector_kwargs={"one": {"condition": c}})
    assert bool(tf.reduce_all(tape.gradient(value, c) != 0.0))
    assert relative_error(distribution.log_prob(x), value) > 1e-3


def test_condition_of_another_batch():
    with pytest.raises(ValueError, match=r"`condition` must have the batch shape.*\(3, 1\)"):
        CNF(Field(), **FIXED).forward(points(4, 3), condition=points(3, 1))


# In TensorFlow Probability


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("trace", [slow("exact"), "hutchinson"])
def test_sample_and_log_prob(trace, mode):
    chain = tfb.Chain([CNF(Field(seed=k), trace=trace, name=f"flow_{k}", **FINE) for k in range(2)])
    base = tfd.Independent(
        tfd.Normal(tf.Variable(tf.zeros(3, tf.float64)), tf.ones(3, tf.float64)), 1
    )
    distribution = tfd.TransformedDistribution(base, chain)
    assert len(distribution.trainable_variables) == 5

    def compute():
        x, log_prob = distribution.experimental_sample_and_log_prob(4, seed=(1, 2))
        return x, log_prob, distribution.log_prob(tf.identity(x)), distribution.sample(4, (1, 2))

    x, log_prob, again, sample = run(compute, mode)
    assert relative_error(again, log_prob) < 1e-6
    assert relative_error(sample, x) < 1e-12


@pytest.mark.slow
def test_saved_model(tmp_path):
    flow = CNF(keras_field(), trace="hutchinson", **FIXED)
    distribution = tfd.TransformedDistribution(normal(dtype=tf.float32), flow)
    module = tf.Module()
    module.distribution = distribution
    spec = tf.TensorSpec([None, 3])
    module.log_prob = tf.function(distribution.log_prob, input_signature=[spec])
    module.sample = tf.function(
        lambda seed: distribution.sample(5, seed=seed),
        input_signature=[tf.TensorSpec([2], tf.int32)],
    )
    tf.saved_model.save(
        module, tmp_path, signatures={"log_prob": module.log_prob, "sample": module.sample}
    )
    loaded = tf.saved_model.load(tmp_path)
    x = points(4, 3, dtype=tf.float32)
    assert relative_error(loaded.log_prob(x), distribution.log_prob(x)) < 1e-6
    served = loaded.signatures["sample"](seed=tf.constant([1, 2]))
    assert relative_error(*served.values(), distribution.sample(5, seed=(1, 2))) < 1e-6


# Arguments


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(trace="skilling"), "`trace` must be one of"),
        (dict(t=(0.0, 1.0, 2.0)), "`t` must have two entries"),
        (dict(t=(1.0, 1.0)), "`t` must be finite and strictly"),
        (dict(event_ndims=0), "`event_ndims` must be a positive int"),
        (dict(regularizers="kinetic_energy"), "`regularizers` must be a sequence"),
        (dict(regularizers=["energy"]), "`regularizers` must be a sequence"),
        (dict(method="rk5"), "`method` must be"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        CNF(Field(), **options)


def test_wrong_seed():
    with pytest.raises(TypeError, match="`seed` must be integer. Received: float32"):
        CNF(Field(), trace="hutchinson", **FIXED).forward(points(2, 3), seed=0.5)
    with pytest.raises(ValueError, match="`seed` must have the shape"):
        CNF(Field(), trace="hutchinson", seed=[1, 2, 3], **FIXED)


def test_wrong_result_of_the_dynamics():
    with pytest.raises(ValueError, match="`dynamics` must return the shape of the state"):
        CNF(lambda t, y: y[:, :2], **FIXED).forward(points(2, 3))
    with pytest.raises(TypeError, match="`dynamics` must return the dtype"):
        CNF(lambda t, y: tf.cast(y, tf.float32), **FIXED).forward(points(2, 3))


def test_random_dynamics_are_refused():
    with pytest.raises(ValueError, match="`dynamics` must give the same result"):
        CNF(lambda t, y: y + tf.random.normal(tf.shape(y), dtype=y.dtype), **FIXED).forward(
            points(2, 3)
        )


def test_failures_speak():
    flow = CNF(lambda t, y: y**3, rtol=1e-6, atol=1e-6, max_steps=50)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Received: status"):
        flow.forward(points(2, 3) + 5.0)

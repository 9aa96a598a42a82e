"""Functional models get their inputs by name."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj
from tfsymadj.layers import ODELayer

FEW = dict(method="rk4", num_steps=2)
XLA_SLOW = pytest.mark.parametrize("jit", [False, slow(True)], ids=["graph", "xla"])


def scalars(*names):
    return [keras.Input((1,), name=name) for name in names]


def pendulum(outputs=lambda q, p: {"q": 1.0 * p, "p": -2.0 * q}, inputs=list):
    """A functional model of q and p, whose order and kind of inputs are what is tried."""
    q, p = scalars("q", "p")
    given = {"list": [p, q], "tuple": (q, p), "dict": {"q": q, "p": p}, "flipped": {"p": p, "q": q},
             "pair": {"p": p, "q": q}, "state": State(q, p)}[inputs]  # fmt: skip
    return keras.Model(given, outputs(q, p))


State = collections.namedtuple("State", ["q", "p"])
STATES = {
    "dict": lambda q, p: {"q": q, "p": p},
    "flipped": lambda q, p: {"p": p, "q": q},
    "ordered": lambda q, p: collections.OrderedDict([("q", q), ("p", p)]),
    "namedtuple": State,
}


@pytest.mark.parametrize("inputs", ["list", "tuple", "dict", "flipped", "state"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_state_by_name(inputs, state, graph):
    model = pendulum(inputs=inputs)
    y0 = STATES[state](tf.constant([[2.0]]), tf.constant([[3.0]]))

    def solve():
        return tfsymadj.odeint(model, y0, [0.0, 1.0], method="euler", num_steps=1)

    y = tf.function(solve)() if graph else solve()
    assert type(y) is type(y0)
    q, p = (y.q, y.p) if state == "namedtuple" else (y["q"], y["p"])
    assert (float(q[-1, 0, 0]), float(p[-1, 0, 0])) == (5.0, -1.0)


@pytest.mark.parametrize("autonomous", [None, True])
def test_state_by_name_in_a_layer(autonomous):
    layer = ODELayer(pendulum(inputs="list"), method="euler", num_steps=1, autonomous=autonomous)
    q, p = scalars("first", "second")
    model = keras.Model([q, p], layer({"q": q, "p": p}))
    y = model([np.full((4, 1), 2.0, "float32"), np.full((4, 1), 3.0, "float32")])
    assert (float(y["q"][0, 0]), float(y["p"][0, 0])) == (5.0, -1.0)


def sum_of(weights, inputs):
    """What a model returns for each part of the state, to tell its inputs apart."""
    x = {x.name: x for x in keras.tree.flatten(inputs)}
    total = sum(weight * x[name] for name, weight in weights.items())
    return {"q": total, "p": 0.0 * total}


WEIGHTS = {"q": 1.0, "p": 10.0, "u": 100.0, "t": 1000.0}


@pytest.mark.parametrize(
    "arrange",
    [
        lambda q, p, u, t: [q, p, u, t],
        lambda q, p, u, t: [t, p, q, u],
        lambda q, p, u, t: {"u": u, "t": t, "q": q, "p": p},
        lambda q, p, u, t: [t, {"p": p, "q": q}, u],
        lambda q, p, u, t: [{"p": p, "q": q}, {"u": u}, t],
    ],
    ids=["list", "mixed", "dict", "nested", "nested dicts"],
)
@pytest.mark.parametrize("named", [False, True])
def test_time_and_args_by_name(arrange, named):
    inputs = arrange(*scalars("q", "p", "u", "t"))
    model = keras.Model(inputs, sum_of(WEIGHTS, inputs))
    y0 = {"q": tf.constant([[2.0]]), "p": tf.constant([[3.0]])}
    u = tf.constant([[5.0]])
    t = [1.0, 2.0]
    y = tfsymadj.odeint(model, y0, t, args={"u": u} if named else (u,), method="euler", num_steps=1)
    assert float(y["q"][-1, 0, 0]) == 2.0 + 2.0 + 30.0 + 500.0 + 1000.0


def test_time_by_name_is_not_the_state():
    y, t = scalars("y", "t")
    dynamics = keras.Model([y, t], 10.0 * t + y)
    layer = ODELayer(dynamics, t=(1.0, 2.0), method="euler", num_steps=1)
    assert float(layer(tf.constant([[2.0]]))[0, 0]) == 14.0


def test_inputs_without_names_are_in_order():
    a, b, c = keras.Input((1,)), keras.Input((1,)), keras.Input((1,))
    model = keras.Model([a, b, c], [1.0 * a, 10.0 * b + 100.0 * c])
    y = tfsymadj.odeint(model, (tf.constant([[1.0]]), tf.constant([[2.0]])), [1.0, 2.0],
                        method="euler", num_steps=1, autonomous=False)  # fmt: skip
    assert [float(x[-1, 0, 0]) for x in y] == [2.0, 2.0 + 10.0 + 200.0]


def test_time_of_each_example_beside_an_image():
    time, image = keras.Input((1,)), keras.Input((2, 2, 1))
    dynamics = keras.Model([time, image], image * 0.0 + keras.ops.reshape(time, (-1, 1, 1, 1)))
    layer = ODELayer(tfsymadj.layers.RescaledTime(dynamics), **FEW)
    y = layer(tf.zeros([3, 2, 2, 1]), args=tf.constant([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(y[:, 0, 1, 0], [0.0, 0.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "y0, options, argument",
    [
        ({"q": 1, "v": 1}, {}, "y0"),
        ({"q": 1}, dict(autonomous=True), "y0"),
        ({"q": 1, "p": 1}, dict(autonomous=False), "t"),
        ({"q": 1, "p": 1}, dict(args={"u": 1}), "args"),
        ({"x": 1}, {}, "y0"),
        ((1, 1), dict(inputs="dict"), "y0"),
        ((1, 1, 1), {}, "y0"),
    ],
)
def test_what_cannot_be_matched(y0, options, argument):
    model = pendulum(inputs=options.get("inputs", "list"))
    options = {k: v for k, v in options.items() if k != "inputs"}
    args = options.pop("args", ())
    layer = ODELayer(model, **FEW, **options)

    def symbolic(nest):
        return keras.tree.map_structure(lambda _: keras.Input((1,)), nest)

    for ones in (symbolic, lambda nest: tf.nest.map_structure(lambda _: tf.ones([2, 1]), nest)):
        with pytest.raises(ValueError, match=f"`{argument}` must match.*Received: inputs"):
            layer(ones(y0), args=ones(args))


def test_outputs_by_name():
    y0 = {"q": tf.ones([1, 1]), "p": tf.ones([1, 1])}
    with pytest.raises(TypeError, match="structure of `y0`"):
        tfsymadj.solve(pendulum(lambda q, p: [1.0 * p, -1.0 * q], "list"), y0, [0.0, 1.0], **FEW)


@XLA_SLOW
def test_state_by_name_is_trained(jit):
    q, p = scalars("q", "p")
    dense = keras.layers.Dense(1, use_bias=False)
    layer = ODELayer(keras.Model([p, q], {"q": dense(p), "p": -1.0 * q}), **FEW)
    inputs = {name: x for name, x in zip("qp", scalars("q", "p"))}
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse", jit_compile=jit)
    x = {"q": np.ones((4, 1), "float32"), "p": np.zeros((4, 1), "float32")}
    losses = model.fit(x, x, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[0]

"""Tests of what eager solves see: `dynamics.identity` and the cache of `compiled`."""

import collections
import dataclasses
import enum
import functools
import gc
import importlib
import sys
import types
import typing
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj
from tfsymadj.dynamics.identity import Contents, written

ONE = dict(method="euler", num_steps=1)


def key(x):
    contents = Contents(x)
    assert contents.opaque is None
    return contents.key


def closing_over(x):
    return lambda t, y: x


# Keys


@pytest.mark.parametrize("x", [1, 1.5, 2j, "a", True, None, b"b", np.float32(1), float("nan")])
def test_by_value(x):
    assert key(closing_over(x)) == key(closing_over(x))
    assert key(closing_over(x)) != key(closing_over("other"))


def test_equal_values_of_different_meaning():
    values = [1, 1.0, True, np.float32(1), "1", 0.0, -0.0, None, [1], (1,), {"a": 1}, {1}]
    values += [frozenset({1}), collections.deque([1]), collections.OrderedDict(a=1), [[1]], b"1"]
    assert len({key(closing_over(x)) for x in values}) == len(values)


def test_tensors_and_variables_are_leaves():
    a, b = tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])
    assert key(closing_over(a)) == key(closing_over(b))
    assert key(closing_over(a)) != key(closing_over(tf.constant([1.0])))
    assert key(closing_over(a)) != key(closing_over(tf.Variable(a)))
    assert key(closing_over([a, a])) != key(closing_over([a, b]))
    assert key(closing_over(tf.Variable(a))) != key(closing_over(tf.Variable(a, trainable=False)))
    leaves = Contents(closing_over([a, {"b": b}, a])).leaves
    assert [id(x) for x in leaves] == [id(a), id(b)]


def test_functions_of_libraries_are_known_by_their_code():
    """TensorFlow's have attributes that nobody can look into."""
    assert key(closing_over(tf.identity)) == key(closing_over(tf.identity))
    assert key(closing_over(tf.identity)) != key(closing_over(tf.nn.relu))


def test_small_integers_are_known_by_value():
    assert key(closing_over(tf.constant(1))) != key(closing_over(tf.constant(2)))
    assert key(closing_over(tf.range(100))) == key(closing_over(tf.range(100) + 1))


def test_arrays_by_value():
    for shape in ([3], [100, 100]):
        a = np.ones(shape)
        before = key(closing_over(a))
        assert key(closing_over(np.ones(shape))) == before
        a[1] = 2.0
        assert key(closing_over(a)) != before
        assert key(closing_over(np.ones(shape, np.float32))) != before


def test_cycles():
    items = [1]
    items.append(items)

    def recursive(t, y):
        return recursive, items

    before = key(recursive)
    assert before == key(recursive)
    items[0] = 2
    assert before != key(recursive)


def test_methods_and_partials():
    class Thing:
        k = 1

        def f(self, t, y):
            return y

        def g(self, t, y):
            return 2 * y

    a, b = Thing(), Thing()
    assert key(a.f) == key(b.f)
    b.k = 2
    assert len({key(x) for x in (a.f, a.g, b.f)}) == 3
    partial = functools.partial
    assert key(partial(a.f, 1)) == key(partial(a.f, 1))
    assert key(partial(a.f, 1)) != key(partial(a.f, 2))
    assert key(partial(a.f, y=1)) != key(partial(a.f, t=1))


def test_layers():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)])
    model.build((None, 3))
    keys = [key(closing_over(model))]
    assert keys[0] == key(closing_over(model))
    model.layers[0].trainable = False
    keys.append(key(closing_over(model)))
    model.layers[0].trainable = True
    assert keys[0] == key(closing_over(model))
    model.layers[1].activation = keras.activations.tanh
    keys.append(key(closing_over(model)))
    model.layers[1].note = 1
    keys.append(key(closing_over(model)))
    del model.layers[1].note
    model.layers[1].other = 1
    keys.append(key(closing_over(model)))
    assert len(set(keys)) == len(keys)


def test_what_can_not_be_looked_into():
    assert Contents(closing_over(iter([1, 2]))).opaque is not None
    assert Contents(closing_over(x for x in [1])).opaque is not None


def test_paths_that_are_written():
    log, counts = [1], {"a": 1, "b": 2}
    thing = types.SimpleNamespace(n=0, k=1)
    function = closing_over((log, counts, thing))
    before = Contents(function, with_paths=True)
    log.append(2)
    counts["a"] += 1
    thing.n += 1
    skip = written(before, Contents(function, with_paths=True))
    assert len(skip) == 3
    one = Contents(function, skip).key
    log.append(3)
    counts["a"] += 1
    thing.n += 1
    assert Contents(function, skip).key == one
    counts["b"] += 1
    assert Contents(function, skip).key != one


# What an eager solve sees


def end(dynamics):
    return float(tf.reshape(tfsymadj.odeint(dynamics, tf.zeros([1, 1]), [0.0, 1.0], **ONE)[-1], []))


@dataclasses.dataclass
class Data:
    k: object


class Slots:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


class Child:
    pass


def module(k):
    found = types.ModuleType("settings")
    found.k = k
    return found


def layer(k):
    found = keras.layers.Layer()
    found.k = k
    return found


HOLDERS = {
    "dataclass": Data,
    "slots": Slots,
    "namespace": lambda k: types.SimpleNamespace(k=k),
    "module": module,
    "layer": layer,
    "nested": lambda k: types.SimpleNamespace(k=k),
}
VALUES = {
    "float": (2.0, 3.0),
    "int": (2, 3),
    "bool": (True, False),
    "numpy": (np.float32(2), np.float32(3)),
    "array": (np.full([1, 1], 2, "f"), np.full([1, 1], 3, "f")),
    "tensor": (tf.constant(2.0), tf.constant(3.0)),
    "matrix": (tf.ones([1, 1]), 4 * tf.ones([1, 1])),
    "string": ("2.0", "3.0"),
}


def number(k):
    k = float(k) if isinstance(k, str) else k
    return tf.cast(k, tf.float32)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_attributes(holder, value):
    first, second = VALUES[value]
    thing = HOLDERS[holder](first)

    def dynamics(t, y):
        return number(thing.k) * tf.ones_like(y)

    if holder == "nested":
        outer = types.SimpleNamespace(inner=[{"thing": thing}])

        def dynamics(t, y):  # noqa: F811
            return number(outer.inner[0]["thing"].k) * tf.ones_like(y)

    results = [end(dynamics)]
    thing.k = second
    results.append(end(dynamics))
    np.testing.assert_array_equal(results, [np.reshape(number(k), []) for k in (first, second)])


def test_attribute_that_becomes_none():
    thing = types.SimpleNamespace(k=tf.constant(2.0))

    def dynamics(t, y):
        return tf.ones_like(y) * (1.0 if thing.k is None else thing.k)

    results = [end(dynamics)]
    thing.k = None
    assert [*results, end(dynamics)] == [2.0, 1.0]


@pytest.mark.parametrize(
    "make, change",
    [
        (lambda: [1.0], lambda c: c.append(1.0)),
        (lambda: {"a": 1.0}, lambda c: c.update(b=1.0)),
        (lambda: {1.0}, lambda c: c.add(2.0)),
        (lambda: collections.deque([1.0]), lambda c: c.appendleft(1.0)),
        (lambda: collections.OrderedDict(a=1.0), lambda c: c.update(b=1.0)),
        (lambda: collections.defaultdict(float, a=1.0), lambda c: c.update(b=1.0)),
        (lambda: [[1.0]], lambda c: c.append([])),
    ],
    ids=["list", "dict", "set", "deque", "ordered", "defaultdict", "nested"],
)
def test_containers(make, change):
    container = make()

    def dynamics(t, y):
        return float(len(container)) * tf.ones_like(y)

    results = [end(dynamics)]
    change(container)
    assert [*results, end(dynamics)] == [1.0, 2.0]


def test_methods_partials_and_defaults():
    class Thing:
        factor = 2.0

        def f(self, t, y):
            return self.factor * tf.ones_like(y)

    thing = Thing()
    results = [end(thing.f)]
    Thing.factor = 3.0
    results.append(end(thing.f))
    thing.factor = 4.0
    results.append(end(functools.partial(thing.f)))
    Thing.f = lambda self, t, y: 5.0 * tf.ones_like(y)
    results.append(end(thing.f))
    assert results == [2.0, 3.0, 4.0, 5.0]


FACTOR = 2.0


def by_global(t, y):
    return FACTOR * tf.ones_like(y)


def test_globals_of_a_function_of_a_function(monkeypatch):
    results = [end(lambda t, y: by_global(t, y))]
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    results.append(end(lambda t, y: by_global(t, y)))
    assert results == [2.0, 3.0]


@pytest.mark.parametrize("wrap", ["layer", "lambda layer", "sequential", "plain"])
def test_closures_of_functions_that_layers_hold(wrap):
    k = 2.0

    def function(t, y):
        return k * tf.ones_like(y)

    if wrap == "layer":
        layer = tfsymadj.ODELayer(function, **ONE)
    elif wrap == "lambda layer":
        inner = keras.layers.Lambda(lambda y: k * tf.ones_like(y))
        layer = tfsymadj.ODELayer(inner, **ONE)
    elif wrap == "sequential":
        inner = keras.Sequential([keras.layers.Lambda(lambda y: k * tf.ones_like(y))])
        layer = tfsymadj.ODELayer(inner, **ONE)
    else:

        def layer(y):
            return tfsymadj.odeint(function, y, [0.0, 1.0], **ONE)[-1]

    x, results = tf.zeros([1, 1]), []
    for k in (2.0, 3.0):  # noqa: B007
        results.append(float(layer(x)[0, 0]))
    assert results == [2.0, 3.0]


def test_layers_popped_and_added():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0, offset=1.0)])
    results = [end(model)]
    model.add(keras.layers.Rescaling(3.0))
    results.append(end(model))
    model.pop()
    results.append(end(model))
    model.pop()
    model.add(keras.layers.Rescaling(1.0, offset=7.0))
    results.append(end(model))
    assert results == [1.0, 3.0, 1.0, 7.0]


def test_activation_replaced():
    dense = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer="ones")
    results = [end(dense)]
    dense.activation = keras.activations.relu
    results.append(end(dense))
    dense.activation = lambda x: -x
    results.append(end(dense))
    assert results == [1.0, 1.0, -1.0]


def test_second_adapt():
    normalization = keras.layers.Normalization()
    results = []
    for mean in (1.0, 2.0):
        normalization.adapt(np.array([[mean - 1.0], [mean + 1.0]], "f"))
        results.append(end(lambda t, y: normalization(y)))
    np.testing.assert_allclose(results, [-1.0, -2.0], rtol=1e-6)


class Mode(keras.layers.Layer):
    def call(self, y, training=False):
        return tf.ones_like(y) * (2.0 if training else 1.0)


class Outer(keras.Model):
    def __init__(self):
        super().__init__()
        self.mode = Mode()

    def call(self, y):
        return tfsymadj.odeint(lambda t, y: self.mode(y) * y, y, [0.0, 1.0], **ONE)[-1]


@pytest.mark.parametrize("graph", [False, True])
def test_training_of_the_surrounding_model(graph):
    model, x = Outer(), tf.ones([1, 1])
    call = tf.function(model) if graph else model
    results = []
    for training in (False, True, False):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x, training=training)
        results.append((float(y[0, 0]), float(tape.gradient(y, x)[0, 0])))
    assert results == [(2.0, 2.0), (3.0, 3.0), (2.0, 2.0)]


@pytest.mark.parametrize("graph", [False, True])
def test_stateless_call(graph):
    dense = keras.layers.Dense(1, use_bias=False)
    layer = tfsymadj.ODELayer(dense, **ONE)
    x = tf.ones([1, 1])
    layer(x)

    def compute(weight):
        with tf.GradientTape() as tape:
            tape.watch(weight)
            y, _ = layer.stateless_call([weight], [], x)
        return y, tape.gradient(y, weight)

    call = tf.function(compute) if graph else compute
    for k in (2.0, 3.0):
        y, gradient = call(tf.constant([[k]]))
        assert (float(y[0, 0]), float(gradient[0, 0])) == (1.0 + k, 1.0)
    np.testing.assert_allclose(layer(x), 1.0 + dense.kernel)


def test_python_looks_at_the_value_of_a_tensor():
    results = []
    for k in (2.0, 3.0, 2.0):
        c = tf.constant(k)

        def dynamics(t, y, c=c):
            return (1.0 if float(c) > 2.5 else 2.0) * c * tf.ones_like(y)

        results.append(end(dynamics))
    assert results == [4.0, 3.0, 4.0]


# Static sizes

LOOKING = {
    "ones": lambda y: tf.ones([y.shape[0], 1]) * y.shape[0],
    "eye": lambda y: tf.reduce_sum(tf.eye(y.shape[0]), 1, keepdims=True) * y.shape[0],
    "reshape": lambda y: tf.reshape(y, [y.shape[0], 1]) + y.shape[0],
    "range": lambda y: tf.reduce_max(tf.range(y.shape[0])) .dtype.as_numpy_dtype(1) * (
        tf.zeros_like(y) + tf.cast(tf.size(tf.range(y.shape[0])), y.dtype)),
    "branch": lambda y: tf.ones_like(y) * (4.0 if y.shape[0] == 4 else float(y.shape[0] or -1)),
    "as_list": lambda y: tf.ones_like(y) * float(y.shape.as_list()[0]),
    "unpack": lambda y: tf.ones_like(y) * float(list(y.shape)[0] or -1),
    "python": lambda y: tf.concat([y[i : i + 1] for i in range(y.shape[0])], 0) + y.shape[0],
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKING)
def test_code_that_looks_at_sizes(name):
    for size in (4, 5, 6, 4):
        y = tfsymadj.odeint(lambda t, y: LOOKING[name](y), tf.zeros([size, 1]), [0.0, 1.0], **ONE)
        np.testing.assert_array_equal(y[-1], np.full([size, 1], size))


def test_code_that_does_not_look_is_traced_twice():
    count = [0]

    def dynamics(t, y):
        count[0] += 1
        return -y * tf.ones([tf.shape(y)[0], 1]) * y.shape[-1]

    counts = []
    for size in range(2, 12):
        tfsymadj.odeint(dynamics, tf.ones([size, 1]), [0.0, 1.0], **ONE)
        counts.append(count[0])
    assert len(set(counts)) == 2


# Nothing is kept


def test_counters_and_logs_are_no_reason_to_trace_again():
    class Counting:
        def __init__(self):
            self.calls, self.log, self.cache = 0, [], {}

        def __call__(self, t, y):
            self.calls += 1
            self.log.append(y)
            self.cache[self.calls] = y
            return -y

    dynamics, counts = Counting(), []
    for k in range(4):
        tfsymadj.odeint(dynamics, k * tf.ones([2]), [0.0, 1.0], **ONE)
        counts.append(dynamics.calls)
    assert len(set(counts)) == 1


@pytest.mark.parametrize(
    "options",
    [
        slow([dict(rtol=r) for r in (1e-2, 1e-4, 1e-6)]),
        slow([dict(atol=a) for a in (1e-2, 1e-4, 1e-6)]),
        slow([dict(first_step=h) for h in (0.01, 0.1, 0.2)]),
        slow([dict(min_step=h) for h in (1e-6, 1e-5, 1e-4)]),
        [dict(method="rk4", step_size=h) for h in (0.5, 0.25, 0.125)],
    ],
    ids=["rtol", "atol", "first_step", "min_step", "step_size"],
)
def test_numbers_of_the_steps_are_inputs(options):
    count = [0]

    def dynamics(t, y):
        count[0] += 1
        return -y

    counts, steps = [], []
    for option in options:
        solution = tfsymadj.solve(dynamics, tf.ones([2], tf.float64), [0.0, 1.0], **option)
        expected = tf.function(
            lambda option=option: tfsymadj.solve(
                lambda t, y: -y, tf.ones([2], tf.float64), [0.0, 1.0], **option
            )
        )()
        np.testing.assert_allclose(solution.y, expected.y, rtol=1e-14)
        counts.append(count[0])
        steps.append(int(solution.stats.num_accepted))
    assert len(set(counts)) == 1
    assert len(set(steps)) > 1 or "min_step" in options[0]


@pytest.mark.slow
def test_models_are_freed_after_fit():
    alive, before = [], len(graphs_of_solves())
    for jit in (False, True):
        layer = tfsymadj.ODELayer(keras.layers.Dense(3), **ONE)
        model = keras.Sequential([keras.Input((3,)), layer])
        model.compile("sgd", "mse", jit_compile=jit)
        x = np.ones((4, 3), "f")
        model.fit(x, x, verbose=0)
        alive += [weakref.ref(layer), weakref.ref(layer.dynamics.kernel)]
        assert len(graphs_of_solves()) > before
        del model, layer
        keras.backend.clear_session()
        gc.collect()
    assert [x() for x in alive] == [None] * 4
    assert len(graphs_of_solves()) <= before


def graphs_of_solves():
    gc.collect()
    graphs = [x for x in gc.get_objects() if type(x).__name__ == "FuncGraph"]
    return [x for x in graphs if "one_step_on_data" in x.name and hasattr(x, "_tfsymadj_gradients")]


# Members of kinds that are rarely met


SCALE = 1.0


class Point(typing.NamedTuple):
    x: float

    def rate(self):
        return SCALE * self.x


class Colour(enum.Enum):
    RED = 1

    def rate(self):
        return SCALE


class Slotted:
    __slots__ = ("__k",)

    def __init__(self, k):
        self.__k = k

    def rate(self):
        return self.__k


class Table(dict):
    factor = 1.0

    def rate(self):
        return self["k"] * self.factor * getattr(self, "extra", 1.0)


class Marked(np.ndarray):
    pass


class Number(float):
    pass


@pytest.mark.parametrize("x", [Point(2.0), Colour.RED], ids=["named tuple", "enum"])
def test_globals_of_methods_of_values(x, monkeypatch):
    before = key(closing_over(x))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert key(closing_over(x)) != before


@pytest.mark.parametrize(
    "x", [Table(k=1.0), np.zeros(2).view(Marked), Number(2.0)], ids=["dict", "array", "float"]
)
def test_attributes_of_values(x):
    before = key(closing_over(x))
    x.extra = 2.0
    assert key(closing_over(x)) != before


def test_class_attributes_of_a_container(monkeypatch):
    x = Table(k=1.0)
    before = key(closing_over(x))
    monkeypatch.setattr(Table, "factor", 3.0)
    assert key(closing_over(x)) != before


def test_private_slots():
    assert key(closing_over(Slotted(1.0))) != key(closing_over(Slotted(2.0)))
    assert key(closing_over(Slotted(1.0))) == key(closing_over(Slotted(1.0)))


def test_slices_zeros_and_factories():
    assert key(closing_over(slice(0, 1))) == key(closing_over(slice(0, 1)))
    assert key(closing_over(slice(0, 1))) != key(closing_over(slice(0, 2)))
    assert key(closing_over(complex(0.0, 0.0))) != key(closing_over(complex(0.0, -0.0)))
    ints, floats = (collections.defaultdict(kind) for kind in (int, float))
    assert key(closing_over(ints)) != key(closing_over(floats))
    y = tfsymadj.odeint(lambda t, y: -y[:, slice(0, 1)], tf.ones([2, 1]), [0.0, 1.0], **ONE)
    np.testing.assert_array_equal(y[-1], np.zeros([2, 1]))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's with a module inside, `users.inner`."""
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "__init__.py").write_text("from users import inner\n")
    (tmp_path / "users" / "inner.py").write_text("scale = 1.0\n\n\ndef f():\n    return scale\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("users")
    for name in ("users", "users.inner"):
        sys.modules.pop(name)


def test_modules_in_modules(package):
    def by_attribute(t, y):
        return package.inner.scale * y

    def by_function(t, y):
        return package.inner.f() * y

    for dynamics in (by_attribute, by_function):
        package.inner.scale = 1.0
        before = key(dynamics)
        package.inner.scale = 3.0
        assert key(dynamics) != before


def test_modules_imported_inside(package):
    def whole(t, y):
        import users.inner as m

        return m.scale * y

    def part(t, y):
        from users.inner import scale

        return scale * y

    for dynamics in (whole, part):
        package.inner.scale = 1.0
        values = []
        for scale in (1.0, 3.0):
            package.inner.scale = scale
            values.append(float(tfsymadj.odeint(dynamics, 1.0, [0.0, 1.0], **ONE)[-1]))
        assert values == [2.0, 4.0]


def test_names_of_layers():
    layer = keras.layers.Dense(2)
    before = key(layer)
    layer.name = "other"
    assert key(layer) != before


# Values that TensorFlow asks eager tensors for


@pytest.mark.parametrize(
    "use",
    [
        lambda y, x: tf.gather(y, x, axis=1),
        lambda y, x: tf.transpose(tf.gather(tf.transpose(y), x)),
        lambda y, x: y * tf.cast(x.numpy()[0], y.dtype),
        lambda y, x: y * tf.get_static_value(x)[0].astype("float32"),
        lambda y, x: tf.reduce_sum(tf.one_hot(x, 3), 0) * y,
    ],
)
def test_small_tensors_of_integers(use):
    y = tf.constant([[1.0, 2.0, 3.0]])

    class Holder:
        x = tf.constant([2, 1, 0])

        def __call__(self, t, y):
            return use(y, self.x)

    holder = Holder()
    for x in ([2, 1, 0], [0, 0, 1], [1, 2, 0]):
        holder.x = tf.constant(x)
        expected = y + use(y, holder.x)
        np.testing.assert_allclose(
            tfsymadj.odeint(holder, y, [0.0, 1.0], **ONE)[-1], expected, rtol=1e-6
        )

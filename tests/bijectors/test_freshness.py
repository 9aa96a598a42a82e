"""A flow never gives an old answer; its copies, and what it keeps alive."""

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from helpers.flows import MATRIX, Weighted, conditioned, normal, points
from helpers.gradients import relative_error
from helpers.modes import MODES, run, slow

from tfsymadj.bijectors import CNF, FlowSolution, HutchinsonTrace, Logit

tfb, tfd = tfp.bijectors, tfp.distributions
FIXED = dict(method="euler", num_steps=2)
METHODS = [
    "forward", "inverse", "forward_log_det_jacobian", "inverse_log_det_jacobian",
    "forward_solution", "inverse_solution",
]  # fmt: skip


def with_time(t, y):
    return tf.sin(y @ MATRIX) + t


# Changes: each gives a flow, its keywords, and what changes one of them


def variable(value, dtype=tf.float64):
    return tf.Variable(value, dtype=dtype)


def keras_variable(value, dtype="float64"):
    return keras.Variable(value, dtype=dtype, trainable=False)


def array(value, dtype="float64"):
    return np.array(value, dtype)


def assign(x, value):
    if isinstance(x, np.ndarray):
        x[...] = value
    else:
        x.assign(value)


def seed(make, value, dtype):
    def case():
        x = make(value, dtype)
        flow = CNF(conditioned, trace="hutchinson", **FIXED)
        return flow, {"seed": x}, lambda: assign(x, np.add(value, 3))

    return case


def own_seed(make, value, dtype):
    def case():
        x = make(value, dtype)
        flow = CNF(conditioned, trace="hutchinson", seed=x, **FIXED)
        return flow, {}, lambda: assign(x, np.add(value, 3))

    return case


def condition(make, pack=lambda x: x):
    def case():
        x = make(np.full((4, 1), 0.5))
        flow = CNF(conditioned, **FIXED)
        return flow, {"condition": pack(x)}, lambda: assign(x, np.full((4, 1), 2.0))

    return case


def item_of_a_condition():
    flow, given = CNF(conditioned, **FIXED), {"a": points(4, 1)}
    return flow, {"condition": given}, lambda: given.update(a=points(4, 1, seed=7))


def time(make):
    def case():
        t = make([0.0, 1.0])
        return CNF(with_time, t, **FIXED), {}, lambda: assign(t, [0.0, 2.0])

    return case


def end_time(make):
    def case():
        end = make(1.0)
        return CNF(with_time, (0.0, end), **FIXED), {}, lambda: assign(end, 2.0)

    return case


def weight():
    field = Weighted()
    return CNF(field, **FIXED), {}, lambda: field.w.assign(0.5 * MATRIX)


def layer():
    net = keras.Sequential([keras.Input([3]), keras.layers.Dense(3, "tanh", dtype="float64")])
    return CNF(net, **FIXED), {}, lambda: net.layers[0].kernel.assign(MATRIX)


def closure(first, second):
    def case():
        held, other = first(), second()

        def change():
            nonlocal held
            held = other

        return CNF(lambda t, y: tf.sin(held * y), **FIXED), {}, change

    return case


def variable_of_a_closure():
    """Bound after the flow was made."""
    held = tf.Variable(1.0, dtype=tf.float64)
    flow = CNF(lambda t, y: tf.sin(held * y), **FIXED)
    held = tf.Variable(2.0, dtype=tf.float64)
    return flow, {}, lambda: held.assign(0.5)


def array_of_a_closure():
    held = np.ones(3)
    return CNF(lambda t, y: tf.sin(held * y), **FIXED), {}, lambda: assign(held, 2.0)


CASES = {
    "seed, variable": seed(variable, 1, tf.int64),
    "seed, variable of int32": seed(variable, (1, 2), tf.int32),
    "seed, Keras variable": seed(keras_variable, 1, "int32"),
    "seed, array": seed(array, 1, "int64"),
    "seed, array of uint8": seed(array, (1, 2), "uint8"),
    "own seed, variable": own_seed(variable, 1, tf.int64),
    "own seed, Keras variable": own_seed(keras_variable, 1, "int32"),
    "own seed, array": own_seed(array, (1, 2), "int32"),
    "condition, variable": condition(variable),
    "condition, Keras variable": condition(keras_variable),
    "condition, array": condition(array),
    "condition, variable in a dict": condition(variable, lambda x: {"a": {"b": x}}),
    "condition, array in a tuple": condition(array, lambda x: (points(4, 1), x)),
    "condition, item": item_of_a_condition,
    "time, variable": time(variable),
    "time, Keras variable": time(keras_variable),
    "time, array": time(array),
    "end, variable": end_time(variable),
    "end, Keras variable": end_time(keras_variable),
    "weight": weight,
    "layer": layer,
    "closure, tensor": closure(lambda: points(3), lambda: points(3, seed=2)),
    "closure, number": closure(lambda: 1.0, lambda: 2.0),
    "closure, variable": closure(lambda: variable(1.0), lambda: variable(2.0)),
    "closure, assigned": variable_of_a_closure,
    "closure, array": array_of_a_closure,
}  # fmt: skip
CHANGES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def number(result):
    """The tensor in question of what a method returns."""
    return result.log_det_jacobian if hasattr(result, "log_det_jacobian") else result


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@CHANGES
def test_no_method_gives_an_old_answer(case, mode):
    flow, keywords, change = case()
    x = points(4, 3)
    methods = METHODS if mode == "eager" else METHODS[2:4]

    def all_methods(make):
        return {name: number(getattr(flow, name)(make(x), **keywords)) for name in methods}

    def compute():
        old = all_methods(lambda x: x)
        change()
        return old, all_methods(lambda x: x), all_methods(tf.identity)

    old, new, fresh = run(compute, mode)
    assert relative_error(new, fresh) < 1e-12
    for name in METHODS[2:4]:
        assert relative_error(new[name], old[name]) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "seed, variable",
        slow("own seed, Keras variable"),
        slow("condition, array"),
        slow("end, variable"),
        slow("layer"),
        slow("condition, variable in a dict"),
        slow("closure, number"),
        slow("closure, assigned"),
    ],
)
def test_nor_does_any_within_one_graph(case):
    test_no_method_gives_an_old_answer(CASES[case], "graph")


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("case", ["seed, variable", "condition, Keras variable", "time, variable"])
def test_nor_between_two_calls_of_one_graph(case, mode):
    flow, keywords, change = CASES[case]()
    chain = tfb.Chain([flow])

    @tf.function(jit_compile=mode == "xla")
    def compute(x):
        return chain.inverse_log_det_jacobian(x, cnf=keywords)

    x = points(4, 3)
    old = compute(x)
    change()
    new, fresh = compute(x), flow.inverse_log_det_jacobian(x, **keywords)
    assert relative_error(new, fresh) < 1e-12 and relative_error(new, old) > 1e-6


def test_python_that_assigns_within_a_graph():
    field = Weighted()
    flow = CNF(field, **FIXED)

    @tf.function
    def compute(x):
        old = flow.forward(x)
        done = tf.py_function(lambda: field.w.assign(0.5 * MATRIX), [], tf.float64)
        with tf.control_dependencies([done]):
            return old, flow.forward(x)

    x = points(4, 3)
    old, new = compute(x)
    assert relative_error(new, flow.forward(x)) < 1e-12 and relative_error(new, old) > 1e-6


WRAPS = {
    "chain": (lambda flow: tfb.Chain([tfb.Scale(tf.constant(2.0, tf.float64)), flow]), True),
    "chain of chains": (lambda flow: tfb.Chain([tfb.Chain([flow], name="inner")]), None),
    "inverted": (tfb.Invert, False),
    "inverted chain": (lambda flow: tfb.Invert(tfb.Chain([flow])), True),
    "in a chain, inverted": (lambda flow: tfb.Chain([tfb.Invert(flow, name="cnf")]), True),
    "in a map": (lambda flow: tfb.JointMap([flow]), None),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    "case", ["seed, variable", "condition, array", "condition, Keras variable", "time, variable",
             "layer", "closure, tensor"]
)  # fmt: skip
def test_nor_does_what_holds_a_flow(case, wrap):
    flow, keywords, change = CASES[case]()
    make, named = WRAPS[wrap]
    if named is None and keywords:
        keywords = {"inner": {"cnf": keywords}} if wrap == "chain of chains" else {"cnf": keywords}
    elif named:
        keywords = {"cnf": keywords} if keywords else {}
    if wrap == "in a map" and keywords:
        pytest.skip("TensorFlow Probability hands no keywords over")
    bijector, x = make(flow), points(4, 3)

    def compute(x):
        x = [x] if wrap == "in a map" else x
        ndims = {"event_ndims": [1]} if wrap == "in a map" else {}
        return tf.nest.flatten([
            bijector.forward(x, **keywords),
            bijector.forward_log_det_jacobian(x, **ndims, **keywords),
            bijector.inverse(x, **keywords),
            bijector.inverse_log_det_jacobian(x, **ndims, **keywords),
        ])  # fmt: skip

    old = compute(x)
    change()
    new = compute(x)
    for a, b in zip(new, compute(tf.identity(x))):
        assert relative_error(a, b) < 1e-12
    assert relative_error(new[-1], old[-1]) > 1e-6


@pytest.mark.parametrize("case", ["seed, variable", "condition, array", "weight", "time, array"])
def test_nor_does_a_distribution(case):
    flow, keywords, change = CASES[case]()
    distribution = tfd.TransformedDistribution(normal(), tfb.Chain([flow]))
    x, given = points(4, 3), {"bijector_kwargs": {"cnf": keywords}}
    old = distribution.log_prob(x, **given)
    change()
    new = distribution.log_prob(x, **given)
    assert relative_error(new, distribution.log_prob(tf.identity(x), **given)) < 1e-12
    assert relative_error(new, old) > 1e-6


@pytest.mark.parametrize("make", [variable, keras_variable, array])
def test_input_that_changes(make):
    flow, x = CNF(conditioned, **FIXED), make(points(4, 3))
    for name in METHODS:
        assign(x, points(4, 3))
        getattr(flow, name)(x)
        assign(x, points(4, 3, seed=2))
        new, fresh = getattr(flow, name)(x), getattr(flow, name)(points(4, 3, seed=2))
        assert relative_error(number(new), number(fresh)) == 0.0


# Tapes


def late_watch(flow, x, call):
    with tf.GradientTape() as tape:
        call(x)
        tape.watch(x)
        value = call(x)
    return tape.gradient(value, x)


def late_watch_of_an_image(flow, x, call):
    with tf.GradientTape() as tape:
        y = flow.forward(x) if call is not flow.forward else flow.inverse(x)
        tape.watch(y)
        value = call(y)
    return tape.gradient(value, y)


def within_a_persistent_one(flow, x, call):
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        call(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = call(x)
        return inner.gradient(value, x)


def after_another_in_a_persistent_one(flow, x, call):
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        for _ in range(2):
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = call(x)
        return inner.gradient(value, x)


def after_a_pause(flow, x, call):
    with tf.GradientTape() as tape:
        tape.watch(x)
        with tape.stop_recording():
            call(x)
        value = call(x)
    return tape.gradient(value, x)


def after_a_reset(flow, x, call):
    with tf.GradientTape() as tape:
        tape.watch(x)
        call(x)
        tape.reset()
        tape.watch(x)
        value = call(x)
    return tape.gradient(value, x)


TAPES = [
    late_watch,
    late_watch_of_an_image,
    slow(within_a_persistent_one),
    slow(after_another_in_a_persistent_one),
    after_a_pause,
    after_a_reset,
]


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@pytest.mark.parametrize("chained", [slow(False, id="flow"), pytest.param(True, id="chain")])
@pytest.mark.parametrize("use", TAPES, ids=lambda use: use.__name__)
def test_gradient_is_that_of_a_new_solve(use, chained, mode):
    flow = CNF(Weighted(), **FIXED)
    flow = tfb.Chain([flow]) if chained else flow
    call = flow.forward_log_det_jacobian

    def compute():
        x = points(4, 3)
        found = use(flow, x, call)
        expected = use(flow, x, lambda x: call(tf.identity(x)))
        return found, expected

    found, expected = run(compute, mode)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("make", [variable, keras_variable, lambda value: tf.constant(value)])
def test_gradient_of_a_condition_watched_late(make):
    flow, c, x = CNF(conditioned, **FIXED), make(np.full((4, 1), 0.5)), points(4, 3)
    source = c.value if isinstance(c, keras.Variable) else c
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        flow.forward(x, condition=c)
        tape.watch(source)
        value = flow.forward(x, condition=c)
    with tf.GradientTape(watch_accessed_variables=False) as other:
        other.watch(source)
        fresh = flow.forward(tf.identity(x), condition=c)
    gradients = tape.gradient(value, source), other.gradient(fresh, source)
    assert relative_error(*gradients) < 1e-12


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_score_of_a_sample_within_its_tape(mode):
    distribution = tfd.TransformedDistribution(normal(), CNF(Weighted(), **FIXED))

    def compute():
        with tf.GradientTape() as tape:
            x = distribution.sample(4, seed=(1, 2))
            tape.watch(x)
            value = distribution.log_prob(x)
        score = tape.gradient(value, x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = distribution.log_prob(x)
        return score, tape.gradient(value, x)

    assert relative_error(*run(compute, mode)) < 1e-12


OTHER_TAPES = [(0, "graph"), (2, "eager"), (2, "graph")]


@pytest.mark.parametrize(
    "tapes, mode",
    [(0, "eager"), (1, "eager"), slow(1, "graph"), *(slow(*x) for x in OTHER_TAPES)],
)
def test_one_solve_for_each_flow(tapes, mode, solves):
    """Also under tapes, with conditions, in nested chains with a flow that occurs twice."""
    flow = CNF(conditioned, name="a", **FIXED)
    inner = tfb.Chain([flow, tfb.Scale(tf.constant(2.0, tf.float64))], name="inner")
    chain = tfb.Chain([inner, CNF(Weighted(), name="b", **FIXED), flow], name="chain")
    distribution = tfd.TransformedDistribution(normal(), chain)
    c = tf.Variable(points(4, 1))
    given = {"bijector_kwargs": {"a": {"condition": c}, "inner": {"a": {"condition": c}}}}

    def compute(depth=tapes):
        if depth:
            with tf.GradientTape(persistent=depth == 2):
                return compute(depth - 1)
        distribution.log_prob(points(4, 3), **given)
        sample = distribution.sample(4, seed=(1, 2), **given)
        return distribution.log_prob(sample, **given)

    run(compute, mode)
    assert len(solves) == 6


# Hashes


def test_hash_does_not_change():
    field = Weighted()
    flow = CNF(field, **FIXED)
    chain = tfb.Chain([flow])
    kept = {flow: 1, chain: 2}
    with tf.GradientTape():
        flow.forward(points(4, 3))
    field.w.assign(0.5 * MATRIX)
    tf.function(lambda: kept[flow])()
    assert kept == {flow: 1, chain: 2} and flow in {flow} and kept[chain] == 2
    assert flow != CNF(field, **FIXED) and flow != flow.copy()


# Copies


@keras.saving.register_keras_serializable()
class Registered(keras.layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(3, 3), initializer="orthogonal")

    def call(self, t, y):
        return tf.sin(y @ self.w)


def registered():
    layer = Registered(dtype="float64")
    layer.build((None, 3))
    return layer


def sequential():
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(3, "tanh", dtype="float64")])


def subdistribution(flow):
    base = tfd.Independent(tfd.Normal(variable(np.zeros(3)), variable(np.ones(3))), 1)
    return tfd.TransformedDistribution(base, tfb.Chain([flow, tfb.Scale(variable(2.0))]))


HOLDERS = {
    "flow": (lambda flow: flow, 0),
    "chain": (lambda flow: tfb.Chain([flow, tfb.Scale(variable(2.0))]), 1),
    "inverted": (lambda flow: tfb.Invert(flow), 0),
    "shared": (lambda flow: tfb.Chain([flow, tfb.Scale(variable(2.0)), flow]), 1),
    "distribution": (subdistribution, 3),
    "of a diagonal normal": (lambda flow: tfd.TransformedDistribution(normal(), flow), 0),
}
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


def evaluate(x):
    if isinstance(x, tfd.Distribution):
        return x.log_prob(points(4, 3))
    return x.forward(points(4, 3)) + x.inverse_log_det_jacobian(points(4, 3))[:, tf.newaxis]


@pytest.mark.parametrize(
    "how, used",
    [
        pytest.param("deepcopy", False, id="deepcopy-fresh"),
        slow("deepcopy", True, id="deepcopy-used"),
        slow("pickle", False, id="pickle-fresh"),
        slow("pickle", True, id="pickle-used"),
    ],
)
@pytest.mark.parametrize(
    "make, holder",
    [(Weighted, holder) for holder in HOLDERS] + [(registered, "flow"), (sequential, "shared")],
)
def test_copies_have_weights_of_their_own(make, holder, how, used):
    wrap, more = HOLDERS[holder]
    field = make()
    seed = tf.Variable(1, trainable=False, dtype=tf.int64)
    flow = CNF(field, trace="hutchinson", seed=seed, gradient="aca", **FIXED)
    original = wrap(flow)
    if used:
        with tf.GradientTape():
            evaluate(original)
        tf.function(lambda: evaluate(original))()
    copied = COPIES[how](original)
    mine, others = original.trainable_variables, copied.trainable_variables
    assert len(others) == len(mine) == more + len(field.trainable_variables)
    expected = evaluate(original)
    assert relative_error(evaluate(copied), expected) < 1e-12
    for v in mine:
        v.assign(0.5 * v)
    assert relative_error(evaluate(copied), expected) < 1e-12
    changed = evaluate(original)
    assert relative_error(changed, expected) > 1e-6
    for v in others:
        v.assign(0.5 * v)
    assert relative_error(evaluate(copied), changed) < 1e-12
    with tf.GradientTape() as tape:
        value = evaluate(copied)
    assert None not in tape.gradient(value, others)


def test_shallow_copies_share_the_weights():
    field = Weighted()
    flow = CNF(lambda t, y: field(t, y), seed=3, trace="hutchinson", **FIXED)
    for copied in (copy.copy(flow), flow.copy()):
        assert copied is not flow and copied.trainable_variables[0] is field.w
        assert relative_error(evaluate(copied), evaluate(flow)) == 0.0
    other = flow.copy(seed=4)
    assert relative_error(evaluate(other), evaluate(flow)) > 1e-6
    distribution = tfd.TransformedDistribution(normal(), tfb.Chain([flow]))
    assert relative_error(evaluate(distribution.copy()), evaluate(distribution)) == 0.0
    assert distribution.copy().trainable_variables[0] is field.w


GLOBAL = Weighted()


def reads_a_global(t, y):
    return GLOBAL(t, y)


def test_what_can_not_be_copied_is_refused():
    field = Weighted()
    flow = CNF(lambda t, y: field(t, y), **FIXED)
    message = "`dynamics` that are a function can't be copied.*Received: variables Variable:0 of"
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=message):
            refused(tfb.Chain([flow]))
        with pytest.raises(TypeError, match=message):
            refused(CNF(reads_a_global, **FIXED))
        with pytest.raises(TypeError, match=message):
            refused(CNF(tf.function(reads_a_global), **FIXED))

    class Named(CNF):
        def __init__(self, name):
            super().__init__(Weighted(), name=name, **FIXED)

    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="must say how it is copied.*Received: Named"):
            refused(Named("a"))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(CNF(lambda t, y: -y, **FIXED))
    # Without variables there is nothing to share.
    plain = CNF(lambda t, y: -y, **FIXED)
    assert relative_error(evaluate(copy.deepcopy(plain)), evaluate(plain)) == 0.0


# Memory


def eager_tensors():
    gc.collect()
    return sum(isinstance(x, tf.Tensor) for x in gc.get_objects())


def with_new_inputs(flow, x, i):
    flow.forward_log_det_jacobian(points(4, 3, seed=i))


def with_new_seeds(flow, x, i):
    flow.forward_log_det_jacobian(x, cnf={"seed": i}) if hasattr(flow, "bijectors") else (
        flow.forward_log_det_jacobian(x, seed=i)
    )


def with_new_weights(flow, x, i):
    flow.trainable_variables[0].assign(MATRIX * i)
    flow.inverse(x)


def under_tapes(flow, x, i):
    with tf.GradientTape() as tape:
        value = flow.forward_log_det_jacobian(x)
    tape.gradient(value, flow.trainable_variables)


def iterated(flow, x, i):
    flow.last = flow.forward(getattr(flow, "last", x))


@pytest.mark.parametrize("wrap", [slow(lambda flow: flow), lambda flow: tfb.Chain([flow])])
@pytest.mark.parametrize(
    "call",
    [with_new_inputs, slow(with_new_seeds), with_new_weights, under_tapes, slow(iterated)],
    ids=lambda call: call.__name__,
)
def test_nothing_grows(call, wrap):
    flow = wrap(CNF(Weighted(), trace="hutchinson", **FIXED))
    x = points(4, 3)
    for i in range(20):
        call(flow, x, i)
    storage = tfb.Bijector._cache.storage
    before, entries = eager_tensors(), len(storage)
    for i in range(20, 50):
        call(flow, x, i)
    assert eager_tensors() <= before and len(storage) <= entries


def test_a_point_lives_as_long_as_its_image():
    flow, x = CNF(Weighted(), **FIXED), points(4, 3)
    y = flow.forward(x)
    point, image = weakref.ref(x), weakref.ref(y)
    del x
    assert flow.inverse(y) is point()
    del y
    gc.collect()
    assert point() is None and image() is None


@pytest.mark.parametrize("wrap", [lambda flow: flow, lambda flow: tfb.Chain([flow])])
def test_graphs_and_flows_are_freed(wrap, monkeypatch):
    """Without a solve: what is remembered of it keeps neither the graph nor the flow alive."""

    def integrate(self, x, inverse, **keywords):
        return FlowSolution(self._dynamics(0.0, x), x[:, 0], None, None, None, None)

    monkeypatch.setattr(CNF, "_integrate", integrate)
    flow = wrap(CNF(Weighted(), **FIXED))
    x = points(4, 3)
    compute = tf.function(lambda x: flow.inverse_log_det_jacobian(flow.forward(x)))
    graph = weakref.ref(compute.get_concrete_function(x).graph)
    y = flow.forward(x)
    held = weakref.ref(flow)
    del compute
    gc.collect()
    assert graph() is None
    flow = None
    gc.collect()
    assert held() is None and y is not None


def test_other_bijectors_keep_their_caches():
    exp = tfb.Exp()
    chain, ffjord = tfb.Chain([exp]), tfb.FFJORD(lambda t, y: -y)
    x = points(4, 3)
    assert chain.inverse(chain.forward(x)) is x and exp.inverse(exp.forward(x)) is x
    z = tf.ones([4, 3])
    assert ffjord.forward(z) is not None and len(tfb.FFJORD._cache.storage) > 0


@pytest.mark.parametrize("name", ["forward_solution", "inverse_solution"])
def test_status_is_that_of_this_solve(name):
    rate = tf.Variable(1.0, dtype=tf.float64)
    flow = CNF(lambda t, y: tf.sin(rate * y), max_steps=20, on_failure="status")
    x = points(4, 3)
    good = getattr(flow, name)(x)
    rate.assign(1e6)
    bad = getattr(flow, name)(x)
    assert np.all(np.isnan(flow.forward(x))) and np.all(np.isnan(flow.inverse(x)))
    rate.assign(1.0)
    again = getattr(flow, name)(x)
    assert [int(r.status) for r in (good, again)] == [0, 0] and int(bad.status) != 0
    assert np.all(np.isnan(bad.log_det_jacobian)) and relative_error(again.y, good.y) == 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trace", ["hutchinson", HutchinsonTrace("gaussian"), "hutch++"], ids=repr)
def test_noise_of_a_seed_known_only_at_run_time(trace, mode):
    flow, x = CNF(conditioned, trace=trace, **FIXED), points(4, 3)
    seed = tf.Variable([3, 4])
    found = run(lambda: flow.forward_log_det_jacobian(x, seed=seed), mode)
    assert relative_error(found, flow.forward_log_det_jacobian(x, seed=[3, 4])) < 1e-12


def test_logit_of_an_array_that_changes():
    logit, x = Logit(), np.array([0.1, 0.5])
    for call in (logit.forward, logit.inverse, logit.forward_log_det_jacobian):
        call(x)
        x[...] = x + 0.1
        assert relative_error(call(x), call(tf.constant(x))) == 0.0

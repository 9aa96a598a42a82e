"""What those who extend the package rely on: configs, controllers, gradients, traces, the loop."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import MODES, XLA_SLOW, run

import tfsymadj
from tfsymadj import (
    METHODS,
    Backprop,
    ConstantSteps,
    ContinuousAdjoint,
    Controller,
    Gradient,
    PIController,
    Status,
    SymplecticAdjoint,
)
from tfsymadj.bijectors import CNF, HutchinsonTrace, HutchPlusPlusTrace
from tfsymadj.bijectors.traces import ExactTrace, Trace
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.config import Configured, is_int, is_real
from tfsymadj.loop.integrate import integrate
from tfsymadj.loop.problem import Problem
from tfsymadj.methods import get_method
from tfsymadj.steps import Proposal, TabulatedSteps


def decay(t, y):
    return -y


# Configs


class Scaled(Backprop):
    def __init__(self, scale, shift=0.0):
        self.scale, self.shift = scale, shift

    def get_config(self):
        return {"scale": self.scale, "shift": self.shift}

    def solve(self, problem):
        outcome = super().solve(problem)
        return outcome._replace(ys=[self.scale * y for y in outcome.ys])


@pytest.mark.parametrize("base", [Configured, Controller, Gradient, Trace, PIController, Scaled])
@pytest.mark.parametrize("name", ["__init__", "__new__"])
def test_a_constructor_with_arguments_needs_a_config(base, name):
    with pytest.raises(TypeError, match="`Wrong`.*`get_config`.*Received: "):
        type("Wrong", (base,), {name: lambda self, option: None})
    with pytest.raises(TypeError, match="`Wrong`"):
        type("Wrong", (base,), {name: lambda self, *options: None})
    # A config above the constructor can't know its arguments; one beside it or below does.
    methods = {name: lambda self, option: None, "get_config": lambda self: {}}
    right = type("Right", (base,), methods)
    assert type("Below", (right,), {}).get_config is right.get_config
    type("Without", (base,), {"__init__": lambda self: None})


def test_a_constructor_of_a_mixin_needs_a_config():
    class Mixin:
        def __init__(self, option):
            self.option = option

    with pytest.raises(TypeError, match="`Mixed`"):
        type("Mixed", (Mixin, Gradient), {})


class Options(Configured):
    def __init__(self, value):
        self.value = value

    def get_config(self):
        return {"value": self.value}


VALUES = [
    1,
    True,
    1.0,
    -1.0,
    0.0,
    -0.0,
    np.nan,
    "1",
    None,
    1j,
    (1.0, 2.0),
    [1.0, 2.0],
    [1.0, (2.0,)],
    {"a": 1.0},
    {"a": [1.0]},
    {"b": 1.0},
    np.ones(2),
    np.ones(2, "float32"),
    np.ones([2, 1]),
    np.array([1.0, 2.0]),
    {"a": np.zeros(2), "b": (np.ones(1), 1)},
    METHODS["rk4"],
    METHODS["heun"],
    tf.constant([3.0, 4.0]),
]


@pytest.mark.parametrize("i", range(len(VALUES)))
def test_equal_by_config(i):
    value = VALUES[i]
    same = tf.nest.map_structure(lambda x: x.copy() if isinstance(x, np.ndarray) else x, value)
    a, b = Options(value), Options(same)
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    for j, other in enumerate(VALUES):
        if i != j:
            assert a != Options(other)
            assert len({a, Options(other)}) == 2


def test_unequal_objects():
    class More(Options):
        pass

    assert Options(1) != More(1)
    assert Options(1) != 1
    # Attributes that the config doesn't tell of, and values that can't be compared.
    a, b = Scaled(1.0), Scaled(1.0)
    b.factor = 2.0
    assert a != b
    assert Options({1}) != Options({1})


def test_dataclasses_are_not_merged():
    @dataclasses.dataclass(frozen=True)
    class Weighted(Gradient):
        weight: float = 1.0

    assert Weighted(1.0) == Weighted(1.0) != Weighted(2.0)


def test_repr():
    assert repr(Scaled(2.0)) == "Scaled(scale=2.0, shift=0.0)"
    assert repr(ConstantSteps(3)) == "ConstantSteps(num_steps=3, step_size=None)"
    assert repr(ExactTrace()) == "ExactTrace()"
    assert "rtol=array([0.1" in repr(PIController(np.array([0.1, 0.2])))
    assert "ends=" in repr(TabulatedSteps([1.0], [1.0], [True]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PIController(np.full(3, 1e-4), {"a": 1e-6, "b": (np.ones(2), 1e-3)}),
        lambda: PIController((1e-3, 1e-4), [1e-6, 1e-7], integral=0.8, derivative=0.1),
        lambda: PIController(1e-5, 0),
        lambda: ConstantSteps(step_size=0.1),
        lambda: SymplecticAdjoint(30),
        lambda: ContinuousAdjoint(1e-3, method=METHODS["bosh3"]),
        lambda: HutchinsonTrace("gaussian", 2),
        lambda: HutchPlusPlusTrace(np.int64(6)),
        lambda: ExactTrace(),
        lambda: Scaled(2.0),
    ],
)
def test_config_round_trip(make):
    x = make()
    assert x == make()
    assert hash(x) == hash(make())
    assert type(x).from_config(x.get_config()) == x
    with keras.saving.custom_object_scope({type(x).__name__: type(x)}):
        config = keras.saving.serialize_keras_object(x)
        assert keras.saving.deserialize_keras_object(config) == x


def test_numbers():
    assert is_int(3) and is_int(np.int32(3), 3) and not is_int(2, 3)
    assert not is_int(True) and not is_int(3.0) and not is_int("3")
    assert is_real(3) and is_real(np.float32(3)) and not is_real(False) and not is_real("3")


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: PIController(proportional="a"), "proportional"),
        (lambda: PIController(derivative=np.nan), "derivative"),
        (lambda: PIController(integral="a"), "integral"),
        (lambda: PIController(integral=True), "integral"),
        (lambda: PIController(safety=True), "safety"),
        (lambda: PIController(rtol=True), "rtol"),
        (lambda: PIController(atol={"a": 1.0, "b": "c"}), "atol"),
        (lambda: ConstantSteps(True), "num_steps"),
        (lambda: ConstantSteps(np.float64(2)), "num_steps"),
        (lambda: ConstantSteps(step_size=True), "step_size"),
        (lambda: ContinuousAdjoint(rtol="a"), "rtol"),
        (lambda: ContinuousAdjoint(atol=True), "atol"),
        (lambda: SymplecticAdjoint(True), "checkpoints"),
        (lambda: HutchinsonTrace(num_samples=True), "num_samples"),
        (lambda: HutchPlusPlusTrace(3.0), "num_samples"),
    ],
)
def test_wrong_options(make, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        make()


def test_tolerance_that_is_a_tensor_of_a_graph():
    with pytest.raises(ValueError, match="`rtol`(.|\n)*Received: "):
        tf.function(lambda x: PIController(rtol=x).rtol)(tf.constant(1e-3))


def test_own_gradients_in_eager_solves():
    options = dict(method="euler", num_steps=2)
    for scale in (1.0, 10.0, 1.0):
        y = tfsymadj.odeint(decay, 1.0, [0.0, 1.0], gradient=Scaled(scale), **options)
        assert float(y[-1]) == 0.25 * scale


# Controllers


class Halving(Controller):
    """By the methods that CONTRIBUTING names, and no others."""

    adaptive = True

    def initial_state(self, first_step):
        return first_step

    def propose(self, state, t, start, end):
        hits_end = state >= end - t
        one = tf.ones([], tf.float64)
        return Proposal(
            tf.minimum(state, end - t),
            tf.where(hits_end, end, t + state),
            hits_end,
            0.0 * one,
            tf.cast(hits_end, tf.float64),
        )

    def adapt(self, state, proposal, error):
        accepted = error <= 1.0
        return accepted, tf.where(accepted, state, state / 2.0)

    def error_norm(self, errors, ys, ends):
        # Of the state's dtype in each case, as the loop gives them.
        changes = [tf.abs(end - y) for y, end in zip(ys, ends)]
        largest = [tf.reduce_max(tf.abs(e) - 0.0 * c) for e, c in zip(errors, changes)]
        return tf.cast(tf.reduce_max(tf.stack(largest)), tf.float64) / 1e-4


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64])
@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_controller_by_the_documented_methods(method, dtype, mode):
    y0 = tf.ones([2], dtype)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                decay, y0, [0.0, 0.4, 1.0], controller=Halving(), method=method
            )
            value = tf.math.real(solution.y[-1])
        return solution.y, tape.gradient(value, y0)

    y, gradient = run(compute, mode)
    np.testing.assert_allclose(y[:, 0], np.exp([0.0, -0.4, -1.0]), atol=1e-3)
    np.testing.assert_allclose(gradient, np.full(2, np.exp(-1.0)), atol=1e-3)
    assert repr(Halving()) == "Halving()"
    assert Halving() == Halving()


class Most(PIController):
    """Steps of at most `most`."""

    def __init__(self, *args, most=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.most = most

    def get_config(self):
        return {**super().get_config(), "most": self.most}

    def propose(self, state, t, start, end):
        p = super().propose(state, t, start, end)
        before = tf.abs(end - t) > self.most
        limit = tf.where(end > start, self.most, -self.most)
        limit = tf.cast(limit, tf.float64)
        step = tf.where(tf.abs(p.step) > self.most, limit, p.step)
        hits_end = tf.logical_and(p.hits_end, tf.logical_not(before))
        return p._replace(step=step, end=tf.where(hits_end, end, t + step), hits_end=hits_end)


@pytest.mark.parametrize("mode", MODES)
def test_subclass_of_the_controller_keeps_its_overrides(mode):
    def compute(controller):
        return tfsymadj.solve(decay, tf.ones([1]), [0.0, 10.0], controller=controller).stats

    assert int(run(lambda: compute(Most(1e-3, 1e-6)), mode).num_accepted) >= 100
    assert int(run(lambda: compute(Most(1e-3, 1e-6, most=0.5)), mode).num_accepted) < 30


class Halves(ConstantSteps):
    """Equal steps, but for the first half of each interval in one step."""

    def propose(self, state, t, start, end):
        p = super().propose(state, t, start, end)
        first = tf.equal(state, 0)
        step = tf.where(first, (end - start) / 2.0, (end - start) / 4.0)
        return p._replace(step=step, end=tf.where(p.hits_end, end, t + step))


def test_subclass_of_constant_steps_keeps_its_overrides():
    def solve():
        return float(
            tfsymadj.odeint(
                decay, tf.ones([1]), [0.0, 1.0], method="euler", controller=Halves(num_steps=3)
            )[-1, 0]
        )

    assert solve() == 0.5 * 0.75 * 0.75
    with tfsymadj.no_gradient():  # which has a table for steps that are known beforehand
        assert solve() == 0.5 * 0.75 * 0.75


@pytest.mark.parametrize(
    "gradient, tolerances",
    [
        (ContinuousAdjoint(), (np.full(3, 1e-3), 1e-6)),
        (ContinuousAdjoint(), (1e-3, 1e-6)),
        (ContinuousAdjoint(rtol=1e-4), (1e-3, [1e-6])),
        (ContinuousAdjoint(atol=1e-4, method="bosh3"), (1e-3, 1e-6)),
    ],
)
def test_subclass_of_the_controller_in_the_backward_solve(gradient, tolerances):
    norms = {}  # number of tensors -> the tolerance

    class Watching(Most):
        def error_norm(self, errors, ys, ends):
            norms[len(ys)] = self.rtol
            return super().error_norm(errors, ys, ends)

    y0 = tf.ones([3])
    with tf.GradientTape() as tape:
        tape.watch(y0)
        controller = Watching(*tolerances, most=0.3)
        y = tfsymadj.odeint(decay, y0, [0.0, 1.0], controller=controller, gradient=gradient)
        value = tf.reduce_sum(y[-1])
    np.testing.assert_allclose(tape.gradient(value, y0), np.full(3, np.exp(-1.0)), rtol=1e-3)
    assert set(norms) == {1, 2}  # the state, and with its adjoint
    if gradient.rtol is not None:
        assert norms[2] == gradient.rtol


def test_subclasses_in_a_saved_layer(tmp_path):
    with keras.saving.custom_object_scope({"Most": Most, "Scaled": Scaled}):
        layer = tfsymadj.ODELayer(
            keras.layers.Dense(2), controller=Most(1e-4, most=0.2), gradient=Scaled(2.0)
        )
        model = keras.Sequential([keras.Input((2,)), layer])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for option in ("controller", "gradient"):
        again, first = (getattr(x.options, option) for x in (loaded.layers[0], layer))
        assert again == first
        assert hash(again) == hash(first)
    np.testing.assert_array_equal(loaded(tf.ones([1, 2])), model(tf.ones([1, 2])))


# Traces


class Probes(Trace):
    """Unit vectors of the event by the documented methods: exact for two dimensions."""

    def __init__(self, scale):
        self.scale = scale

    def get_config(self):
        return {"scale": self.scale}

    def draw(self, seed, shape, dtype):
        return (tf.ones(shape, dtype),)

    def __call__(self, field, y, noise, with_norm=False):
        with tf.GradientTape() as tape:
            tape.watch(y)
            dy = field(y)
            total = tf.reduce_sum(dy * noise[0])
        slope = tape.gradient(total, y)
        return dy, self.scale * tf.reduce_sum(slope * noise[0], 1), None


def test_own_trace():
    found = []
    for scale in (1.0, 2.0):
        flow = CNF(lambda t, y: 0.5 * y, trace=Probes(scale), method="rk4", num_steps=5)
        found.append(float(flow.forward_log_det_jacobian(tf.ones([1, 2]))[0]))
    np.testing.assert_allclose(found, [1.0, 2.0], rtol=1e-6)
    assert Probes(1.0) == Probes(1.0) != Probes(2.0)
    assert repr(Probes(1.0)) == "Probes(scale=1.0)"


# The loop alone, with controllers that do as they are told and dynamics made by hand


class ByHand:
    """Closed dynamics dy/dt = f(t) y + 1, without anything captured; counts evaluations."""

    captured, variables, live = (), (), [0]

    def __init__(self, rate=lambda t: 0.0 * t, nan_after=np.inf):
        self.rate, self.nan_after, self.times = rate, nan_after, []

    def __call__(self, t, ys):
        self.times.append(float(t))
        value = np.nan if float(t) > self.nan_after else 1.0
        return [tf.cast(self.rate(t), y.dtype) * y + tf.cast(value, y.dtype) for y in ys]


class Told(Controller):
    """Proposes these steps and accepts by these errors."""

    adaptive = True

    def __init__(self, steps, errors=()):
        self.steps = tf.constant(steps, tf.float64)
        self.errors = [*errors, *[0.5] * (100 - len(errors))]
        self.seen = []

    def get_config(self):
        return {"steps": self.steps, "errors": self.errors}

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        h = self.steps[tf.minimum(state, len(self.steps) - 1)]
        h = tf.where(end > start, h, -h)
        hits_end = tf.abs(h) * (1.0 + 1e-12) >= tf.abs(end - t)
        step = tf.where(hits_end, end - t, h)
        zero = tf.zeros([], tf.float64)
        return Proposal(step, tf.where(hits_end, end, t + step), hits_end, zero, zero)

    def error_norm(self, errors, ys, ends):
        return tf.ones([], tf.float64)

    def adapt(self, state, proposal, error):
        # Infinite after a step that was not finite, otherwise as told.
        told = tf.gather(tf.constant(self.errors, tf.float64), state)
        error = tf.where(tf.math.is_finite(error), told, error)
        self.seen.append(float(error))
        return error <= 1.0, state + 1


def loop(controller, ts=(0.0, 1.0), dynamics=None, recording=None, **changes):
    """The `Outcome` of a problem run operation by operation, so that Python sees each step."""
    options = dict(
        dynamics=dynamics or ByHand(),
        ys=[tf.zeros([2], tf.float64)],
        stops=tf.constant(ts, tf.float64),
        method=get_method("adaptive_heun" if controller.adaptive else "euler"),
        controller=controller,
        max_steps=50,
        known_length=False,
        first_step=0.1,
        min_step=0.0,
        with_time=False,
    )
    return integrate(Problem(**options | changes), recording)


KEEP = Recording(stride=1, rows=50)


def accepted_steps(outcome):
    n, grid = int(outcome.stats.num_accepted), outcome.record.grid
    return grid.h.numpy()[:n], grid.hits_end.numpy()[:n]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loop_takes_the_steps_proposed(sign):
    steps = [0.1, 0.2, 0.3, 0.4]
    result = loop(Told(steps), (0.0, sign), recording=KEEP)
    assert int(result.status) == Status.SUCCESS
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (4, 4)
    h, hits_end = accepted_steps(result)
    np.testing.assert_allclose(h, sign * np.array(steps), rtol=1e-14)
    np.testing.assert_array_equal(hits_end, [0, 0, 0, 1])
    np.testing.assert_allclose(result.ys[0][:, 0], [0.0, sign], rtol=1e-14)
    # The states before the steps are what is recorded.
    before = sign * np.array([0.0, 0.1, 0.3, 0.6])
    np.testing.assert_allclose(result.record.kept.states[0][:4, 0], before, atol=1e-15)


def test_loop_repeats_a_rejected_step_from_the_same_state():
    errors = [2.0, 1.0, 7.0, 1.0, 1.0, 0.0]
    controller = Told([0.5, 0.25, 0.5, 0.1, 0.15, 0.5], errors)
    dynamics = ByHand(lambda t: 1.0 + 0.0 * t)
    result = loop(controller, dynamics=dynamics, recording=KEEP)
    assert controller.seen == errors
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (6, 4)
    h, _ = accepted_steps(result)
    np.testing.assert_allclose(h, [0.25, 0.1, 0.15, 0.5], rtol=1e-14)
    # Heun's method for dy/dt = y + 1, over the steps that were accepted
    expected = np.cumprod(1.0 + h + h**2 / 2) - 1.0
    np.testing.assert_allclose(result.ys[0][1], np.full(2, expected[-1]), rtol=1e-13)
    np.testing.assert_allclose(result.record.kept.states[0][1:4, 0], expected[:3], rtol=1e-13)
    assert max(dynamics.times) <= 1.0


@pytest.mark.parametrize("rejections", [1, 5, 49])
def test_loop_survives_rejections_in_a_row(rejections):
    controller = Told([1.0], [2.0] * rejections)
    result = loop(controller)
    assert int(result.status) == Status.SUCCESS
    assert int(result.stats.num_steps) == rejections + 1
    assert int(result.stats.num_accepted) == 1


def test_loop_stops_at_the_bound_of_steps():
    for controller, taken in ((Told([0.1]), 5), (Told([0.1], [2.0] * 100), 0)):
        result = loop(controller, (0.0, 0.2, 1.0), max_steps=5)
        assert int(result.status) == Status.MAX_STEPS_REACHED
        assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (5, taken)
        np.testing.assert_allclose(result.time, 0.1 * taken, rtol=1e-14)
        reached = 2 if taken else 1
        assert np.isfinite(result.ys[0][:reached]).all()
        assert np.isnan(result.ys[0][reached:]).all()
    # Exactly enough is enough.
    assert int(loop(Told([0.25]), max_steps=4).status) == Status.SUCCESS
    assert int(loop(Told([0.25]), max_steps=3).status) == Status.MAX_STEPS_REACHED


def test_loop_ends_a_step_at_each_of_several_outputs_in_a_row():
    ts = [0.0, 0.1, 0.1 + 1e-12, 0.2, 0.9, 1.0]
    result = loop(Told([0.5]), ts, recording=KEEP)
    h, hits_end = accepted_steps(result)
    np.testing.assert_allclose(h, [0.1, 1e-12, 0.1, 0.5, 0.2, 0.1], rtol=1e-3)
    np.testing.assert_array_equal(hits_end, [1, 1, 1, 0, 1, 1])
    np.testing.assert_array_equal(result.record.grid.interval[:6], [0, 1, 2, 3, 3, 4])
    np.testing.assert_allclose(result.ys[0][:, 1], ts, rtol=1e-14)


@pytest.mark.parametrize("step", [0.0, 1e-20])
def test_loop_accepts_no_step_of_zero(step):
    result = loop(Told([0.5, step]), (1.0, 2.0))
    assert int(result.status) == Status.STEP_UNDERFLOW
    assert (int(result.stats.num_steps), int(result.stats.num_accepted)) == (2, 1)
    assert float(result.time) == 1.5
    assert np.isnan(result.ys[0][1]).all()


def test_loop_stops_below_the_least_step():
    rejected = Told([0.5, 0.2, 0.05, 0.01], [2.0] * 50)
    result = loop(rejected, min_step=0.1)
    assert int(result.status) == Status.STEP_UNDERFLOW
    assert int(result.stats.num_steps) == 2
    # What is accepted may be shorter, as at the end of an interval.
    assert int(loop(Told([0.95]), min_step=0.1).status) == Status.SUCCESS


def test_loop_tells_the_controller_of_what_is_not_finite():
    controller = Told([0.9, 0.3, 0.2, 0.0])
    result = loop(controller, dynamics=ByHand(nan_after=0.45))
    assert controller.seen == [np.inf, 0.5, np.inf]
    assert int(result.status) == Status.NON_FINITE_DYNAMICS
    assert float(result.time) == 0.3


def test_loop_counts_evaluations_and_reuses_the_last_slope():
    dynamics = ByHand()
    result = loop(Told([0.25], [2.0]), dynamics=dynamics, first_step=0.1)
    assert int(result.stats.num_evaluations) == len(dynamics.times)


def test_loop_of_fixed_steps_asks_for_no_error():
    class Fixed(Told):
        adaptive = False

        def adapt(self, state, proposal, error):
            assert error is None
            return tf.constant(True), state + 1

    result = loop(Fixed([0.5, 0.3, 0.2]), dynamics=ByHand(lambda t: 1.0 + 0.0 * t))
    np.testing.assert_allclose(result.ys[0][1, 0], ((0.5 * 1.3 + 0.3) * 1.2 + 0.2), rtol=1e-14)
    assert int(result.stats.num_steps) == 3


@pytest.mark.parametrize("ts", [(0.0, 1.0, 0.5), (0.0, 0.0), (0.0, np.nan), (0.0, np.inf)])
def test_loop_refuses_times_out_of_order(ts):
    controller = Told([0.5])
    result = loop(controller, ts)
    assert int(result.status) == Status.TIMES_NOT_MONOTONIC
    assert not controller.seen
    assert np.isnan(result.ys[0][1:]).all()


def test_loop_refuses_a_state_that_is_not_finite():
    result = loop(Told([0.5]), ys=[tf.constant([1.0, np.inf], tf.float64)])
    assert int(result.status) == Status.NON_FINITE_STATE
    assert int(result.stats.num_steps) == 0


def test_first_step_by_hand_is_within_bounds():
    seen = []

    class First(Told):
        def initial_state(self, first_step):
            seen.append(float(first_step))
            return super().initial_state(first_step)

    loop(First([0.5]), first_step=None)
    loop(First([0.5]), (3e9, 3e9 + 1.0), first_step=1e-12)
    assert 0.0 < seen[0] <= 100.0
    assert 3e9 + seen[1] > 3e9

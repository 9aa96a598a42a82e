"""Tests of what flows rely on in TensorFlow and in TensorFlow Probability's private parts."""

import copy

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfsymadj._platform import bijectors, copies, tape_states

tfb, tfd = tfp.bijectors, tfp.distributions


def test_recording_state():
    state, x = tape_states.recording_state, tf.ones([])
    assert state() == ()
    with tf.GradientTape(persistent=True) as tape:
        first = state()
        assert len(first) == 1 == len({first, state()})
        tape.watch(x)
        watched = state()
        assert len(watched) == 1 and watched != first
        with tf.GradientTape() as inner:
            assert len(state()) == 2 and state()[0] == watched[0]
        assert state() == watched
        with tape.stop_recording():
            assert state() == ()
        assert state() == watched
        with tape_states.unrecorded():
            assert state() == () and inner is not None
            x + 1.0
        tape.gradient(x * 1.0, x)
        assert state() == watched
        tape.reset()
        assert state() != watched and len(state()) == 1
        with tf.autodiff.ForwardAccumulator(x, x):
            assert len(state()) == 1
    assert state() == ()
    with tf.autodiff.ForwardAccumulator(x, x):
        assert state() is None


def test_recording_state_in_a_function():
    @tf.function
    def compute():
        before = tape_states.recording_state()
        with tf.GradientTape():
            return len(before), len(tape_states.recording_state())

    with tf.GradientTape():
        outer, inner = compute()
    assert inner == outer + 1


def test_nothing_is_recorded():
    v = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        with tape_states.unrecorded():
            y = v.read_value() * 2.0
    assert tape.watched_variables() == () and tape.gradient(y, v) is None


def test_caches_of_bijectors():
    """The attribute and its four methods are all that a bijector uses of its cache."""

    class Own(tfb.Bijector):
        calls = 0
        _cache = bijectors.NoCache()

        def __init__(self):
            super().__init__(forward_min_event_ndims=0, parameters={})

        def _forward(self, x):
            Own.calls += 1
            return 2.0 * x

        def _inverse(self, y):
            Own.calls += 1
            return y / 2.0

        def _forward_log_det_jacobian(self, x):
            return tf.math.log(2.0) * tf.ones_like(x)

    own, x = Own(), tf.ones([3])
    for call in (own.forward, own.forward, own.inverse, own.inverse):
        call(x)
    assert Own.calls == 4
    own.forward_log_det_jacobian(x), own.inverse_log_det_jacobian(x)
    exp = tfb.Exp()
    assert exp.inverse(exp.forward(x)) is x  # an ordinary one remembers


def test_cache_is_replaced_for_some():
    class Some(tfb.Exp):
        _cache = vars(tfb.Bijector)["_cache"]

    bijectors.replace_cache(Some, bijectors.NoCache(), lambda b: b.name == "forgets")
    usual, other, x = Some(), Some(name="forgets"), tf.ones([3])
    assert isinstance(other._cache, bijectors.NoCache)
    assert not isinstance(usual._cache, bijectors.NoCache)
    assert other.inverse(other.forward(x)) is not x and usual.inverse(usual.forward(x)) is x


@pytest.mark.parametrize(
    "hold",
    [
        lambda b: tfb.Chain([b]),
        lambda b: tfb.Invert(b),
        lambda b: tfb.JointMap({"a": b, "b": tfb.Exp()}),
        lambda b: tfb.Blockwise([b]),
    ],
)
def test_parts(hold):
    bijector = tfb.Scale(2.0)
    assert any(x is bijector for x in bijectors.parts(hold(bijector)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfd.Independent(tfd.Normal([0.0, 1.0], 1.0), 1),
        lambda: tfd.Sample(tfd.Normal(0.0, 1.0), 2),
        lambda: tfd.MultivariateNormalDiag([0.0, 1.0]),
        lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), tfb.Exp()),
    ],
)
def test_copies_of_distributions(make):
    copies.register()
    distribution, x = make(), tf.constant([0.5, 1.5])
    copied = copy.deepcopy(distribution)
    assert type(copied) is type(distribution)
    assert float(copied.log_prob(x)) == float(distribution.log_prob(x))

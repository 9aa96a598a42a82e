"""What tapes record."""

import tensorflow as tf

from tfsymadj._platform import tape_states


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

"""What recordings keep, written and read back without a solve."""

import numpy as np
import pytest
import tensorflow as tf

from tfsymadj.checkpoints.recording import Recording
from tfsymadj.checkpoints.store import Lists, Ring, Store


def state(n):
    """A state that tells of its step."""
    return [tf.fill([2], float(n)), tf.constant(10.0 * n, tf.float64)]


def stages(n, count=3):
    return [[y + 0.1 * i for y in state(n)] for i in range(count)]


def by_part(values):
    """The store takes the stage values of each part of the state."""
    return [list(part) for part in zip(*values)]


def test_every_stride_th_state_is_kept():
    store = Store(Recording(stride=2, rows=3), 3)
    kept = store.empty(state(0))
    assert [x.shape for x in kept.states] == [(4, 2), (4,)] and kept.steps == []
    for n in range(6):
        kept = store.with_state(kept, tf.constant(n), state(n), tf.constant(True))
        # Another attempt from the same state is no news.
        kept = store.with_state(kept, tf.constant(n), state(99), tf.constant(False))
        assert store.with_stages(kept, n, by_part(stages(n))) is kept
    np.testing.assert_array_equal(kept.states[0][:3, 0], [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(kept.states[1][:3], [0.0, 20.0, 40.0])


def test_states_are_restored():
    recording = Recording(stride=2, rows=3)
    rows = [tf.stack(part) for part in zip(state(0), state(2), state(4))]
    held = recording.held(rows, tf.constant(3))
    for segment in (2, 1, 0):
        ys, held = recording.restore(tf.constant(segment), held, rows, state(0), None)
        for y, expected in zip(ys, state(2 * segment)):
            np.testing.assert_array_equal(y, expected)


def test_the_ring_holds_the_stages_of_the_last_steps():
    recording = Recording(stride=2, rows=3, ring=2)
    store, ring = Store(recording, 3), Ring(2)
    kept = store.empty(state(0))
    assert [x.shape for x in kept.steps] == [(2, 3, 2), (2, 3)]
    for n in range(5):
        kept = store.with_stages(kept, tf.constant(n), by_part(stages(99)))  # refused
        kept = store.with_stages(kept, tf.constant(n), by_part(stages(n)))
    rows = kept.steps
    for n in (4, 3):
        stage = ring.of_step(rows, n, state(0))
        for i, expected in enumerate(stages(n)):
            for x, y in zip(stage(i), expected):
                np.testing.assert_allclose(x, y, rtol=1e-6)
    # The backward pass puts those of other steps into the same place.
    rows = ring.set(rows, 1, stages(1))
    np.testing.assert_allclose(ring.of_step(rows, 1, state(0))(2)[0], stages(1)[2][0])
    np.testing.assert_allclose(ring.of_step(rows, 4, state(0))(2)[0], stages(4)[2][0])


def test_nothing_is_kept_where_nothing_is_asked_for():
    recording = Recording(stride=1, rows=0)
    assert not recording.keeps_states and not recording.keeps_steps
    kept = Store(recording, 3).empty(state(0))
    assert kept == ([], [])
    assert Store(recording, 3).with_state(kept, 0, state(0), tf.constant(True)) is kept


@pytest.mark.parametrize("stride", [3, tf.constant(3)], ids=["static", "tensor"])
def test_lists_of_the_stages_of_a_segment(stride):
    lists = Lists(stride, 3)
    rows = lists.reserve(state(0))
    for n in (6, 7, 8):  # the third segment
        rows = lists.set(rows, n, stages(n))
    for n in (6, 7, 8):
        for i, expected in enumerate(stages(n)):
            for x, y in zip(lists.of_step(rows, n, state(0))(i), expected):
                np.testing.assert_allclose(x, y, rtol=1e-6)


def test_the_ring_holds_the_states_of_the_last_steps():
    recording = Recording(stride=2, rows=3, ring=2, tapes_steps=True)
    store, ring = Store(recording, 3), Ring(2)
    kept = store.empty(state(0))
    assert [x.shape for x in kept.steps] == [(2, 1, 2), (2, 1)]
    for n in range(5):
        kept = store.with_state(kept, tf.constant(n), state(n), tf.constant(True))
        assert store.with_stages(kept, n, by_part(stages(n))) is kept
    for n in (4, 3):
        for x, y in zip(ring.of_step(kept.steps, n, state(0))(0), state(n)):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "tapes_steps, expected", [(False, [0, 0, 0, 1, 8]), (True, [0, 0, 0, 0, 6])]
)
def test_steps_that_are_recomputed(tapes_steps, expected):
    recording = Recording(stride=4, rows=3, ring=4, tapes_steps=tapes_steps)
    assert [int(recording.num_recomputed(n, n)) for n in (0, 3, 4, 5, 12)] == expected
    assert recording.num_advanced(12) == 0
    assert recording.num_states(3) == (7 if tapes_steps else 15)

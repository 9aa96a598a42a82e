"""What a solve returns, and how it looks when printed."""

import numpy as np
import pytest
import tensorflow as tf

from tfsymadj import Solution, Stats, Status
from tfsymadj.solution import MESSAGES


def solution(status=Status.SUCCESS, y=None):
    y = tf.zeros([2, 3]) if y is None else y
    counts = Stats(*(tf.constant(n) for n in (7, 5, 2, 43, 60, 12, 1)))
    return Solution(tf.constant([0.0, 1.5], tf.float64), y, tf.constant(int(status)), counts)


@pytest.mark.parametrize("status", Status, ids=str)
def test_success(status):
    success = solution(status).success
    assert (success.dtype, success.shape) == (tf.bool, ())
    assert bool(success) == (status == Status.SUCCESS)


def test_success_in_a_graph():
    assert not tf.function(lambda: solution(Status.MAX_STEPS_REACHED).success)()


def test_status():
    assert str(Status.SUCCESS) == "success"
    assert f"{Status.MAX_STEPS_REACHED}" == "max_steps_reached"
    assert set(MESSAGES) == set(Status) - {Status.SUCCESS}
    assert [int(status) for status in Status] == list(range(len(Status)))


def test_repr():
    assert repr(solution()) == (
        "<Solution: success, t from 0 to 1.5, y: float32 (2, 3), "
        "5 steps and 2 rejected, 43 evaluations>"
    )
    nest = {"a": tf.zeros([2], tf.float64), "b": (tf.zeros([2, 1], tf.complex64),)}
    text = repr(solution(Status.STEP_UNDERFLOW, nest))
    assert text.startswith("<Solution: step_underflow, ")
    assert "y: {a: float64 (2,), b: (complex64 (2, 1),)}" in text


def test_repr_in_a_graph_has_no_numbers():
    seen = []
    tf.function(lambda y: seen.append(repr(solution(y=y))) or y)(np.zeros([2, 3]))
    assert seen == ["<Solution: y: float64 (2, 3)>"]

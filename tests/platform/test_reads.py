"""Reads of variables, substituted."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj._platform import reads


@pytest.fixture
def variable():
    return tf.Variable(1.0)


def by_two(variable):
    """Substitutes the constant 2 for that variable."""

    def substitute(other):
        return tf.constant(2.0) if other is variable else None

    return _platform.substituted(substitute)


def test_plain_reads(variable):
    assert float(variable) == 1.0
    assert float(variable + 1.0) == 2.0
    assert float(tf.function(lambda: variable * 3.0)()) == 3.0
    with tf.GradientTape() as tape:
        y = variable * 3.0
    assert float(tape.gradient(y, variable)) == 3.0


@pytest.mark.parametrize(
    "read",
    [
        lambda v: v.read_value(),
        lambda v: v.value(),
        lambda v: v + 0.0,
        lambda v: tf.convert_to_tensor(v),
        lambda v: tf.identity(v),
        lambda v: tf.stack([v])[0],
        lambda v: tf.matmul([[v]], [[1.0]])[0, 0],
    ],
)
def test_reads_are_substituted(variable, read):
    # In graphs: operations called eagerly may read a variable without any Python.
    @tf.function
    def compute():
        with by_two(variable):
            inside = read(variable)
        return inside, read(variable)

    inside, after = compute()
    assert float(inside) == 2.0
    assert float(after) == 1.0


def test_other_variables_are_read_as_ever(variable):
    other = tf.Variable(5.0)

    @tf.function
    def compute():
        with by_two(variable):
            return other + variable

    assert float(compute()) == 7.0


def test_reads_in_bodies_of_loops_and_branches(variable):
    @tf.function
    def compute():
        with by_two(variable):
            _, loop = tf.while_loop(
                lambda i, x: i < 3, lambda i, x: (i + 1, x + variable), (0, 0.0)
            )
            branch = tf.cond(loop > 0.0, lambda: variable + 0.0, lambda: -variable)
            nested = tf.while_loop(
                lambda i, x: i < 1,
                lambda i, x: (i + 1, tf.cond(x < 1.0, lambda: x + variable, lambda: x)),
                (0, 0.0),
            )[1]
            mapped = tf.map_fn(lambda x: x * variable, tf.ones([2]))
        return loop, branch, nested, mapped

    loop, branch, nested, mapped = compute()
    assert float(loop) == 6.0
    assert float(branch) == 2.0
    assert float(nested) == 2.0
    np.testing.assert_array_equal(mapped, [2.0, 2.0])


def test_a_nested_function_is_traced_inline(variable):
    """Its own trace serves other callers and must not hold tensors of the solver."""
    inner = tf.function(lambda: variable + 0.0)

    @tf.function
    def compute():
        with by_two(variable):
            return inner(), variable + 0.0

    nested, here = compute()
    assert float(nested) == 2.0
    assert float(here) == 2.0
    assert float(inner()) == 1.0


def test_gradient_flows_to_the_substitute(variable):
    value = tf.constant(2.0)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            tape.watch(value)
            with _platform.substituted(lambda other: value):
                y = variable * variable
        found = tape.gradient(y, [value, variable])
        assert found[1] is None
        return y, found[0]

    y, gradient = compute()
    assert float(y) == 4.0
    assert float(gradient) == 4.0


def test_innermost_substitution_wins(variable):
    @tf.function
    def compute():
        with by_two(variable):
            with _platform.substituted(lambda other: tf.constant(3.0)):
                inner = variable + 0.0
            with _platform.substituted(lambda other: None):
                passed_on = variable + 0.0
        return inner, passed_on

    inner, passed_on = compute()
    assert float(inner) == 3.0
    assert float(passed_on) == 2.0


def test_substitution_ends_with_an_error(variable):
    with pytest.raises(ZeroDivisionError), by_two(variable):
        raise ZeroDivisionError
    assert float(variable + 0.0) == 1.0


def test_other_threads_read_as_ever(variable):
    inside, done, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append(float(variable + 0.0))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with by_two(variable):
        inside.set()
        assert done.wait(10)
    thread.join()
    assert seen == [1.0]


def test_storages():
    a, b = tf.Variable(1.0), tf.Variable(1.0)
    keys = [_platform.storage(a), _platform.storage(b)]
    assert keys[0] != keys[1]
    assert _platform.storage(a) == keys[0]
    inside = []
    tf.function(lambda: inside.append(_platform.storage(a)))()
    assert inside == keys[:1]
    assert _platform.is_variable(a)
    assert not _platform.is_variable(tf.constant(1.0))


def test_where_functions_run_eagerly():
    tf.config.run_functions_eagerly(True)
    try:
        assert reads._self_test() is None
    finally:
        tf.config.run_functions_eagerly(False)

"""Ways to run a computation."""

import pytest
import tensorflow as tf


def slow(*values, **options):
    """A combination for the long runs only: its parts are each in a fast one."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)


def partly_slow(values, *slow_ones):
    """All of `values`, some of them for the long runs only; what is new is in the fast suite."""
    return [slow(value) if value in slow_ones else value for value in values]


#: Ways to run a computation: op by op, as a graph, compiled by XLA.
MODES = ("eager", "graph", "xla")


#: The same, for tests of many cases: compiling all of them by XLA takes too long for every change.
XLA_SLOW = ("eager", "graph", slow("xla"))


def run(function, mode):
    """The result of a function without arguments, run in one of `MODES`."""
    if mode == "eager":
        return function()
    return tf.function(function, jit_compile=True if mode == "xla" else None)()

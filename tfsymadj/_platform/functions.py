"""Traced functions: their types, and calls with other captured tensors than those of the trace."""

import threading

import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import concrete_function, polymorphic_function

#: What `tf.function` returns, and one trace of it.
TracedFunction = polymorphic_function.Function
ConcreteFunction = concrete_function.ConcreteFunction

#: Types of what nobody can look into, or needs to: locks, and what TensorFlow's own functions
#: find implementations for other types by.
CLOSED = (
    type(threading.Lock()),
    type(threading.RLock()),
    type(getattr(tf.identity, "_tf_type_based_dispatcher", None)),
)


def forget_variables(concrete):
    """Lets a trace not announce its variables when it is called: it may be called for others."""
    concrete.graph.variables = []


def call(concrete, tensors, captured):
    """Calls a trace with tensors in place of its arguments and of what it captured.

    Args:
        concrete: `ConcreteFunction`.
        tensors: list of tensors, the flat arguments.
        captured: list of tensors like `concrete.captured_inputs`.
    """
    return concrete._call_flat(list(tensors), list(captured))

"""Variable reads and captures of eager tensors, redirected while the dynamics are traced.

A backward pass needs it: a gradient function that reads variables or captures eager tensors itself
breaks inside `keras.layers.RNN`, `tf.map_fn`, `tf.while_loop` and `tf.cond`, and variables that it
gets through `variables=` are read in the same place. So what the dynamics use is brought into the
graph once, outside of the solver, and the solver's loops see tensors of their graph (closure
conversion).
"""

import contextlib
import threading

import tensorflow as tf
from tensorflow.python.framework import func_graph, ops
from tensorflow.python.ops import control_flow_v2_func_graphs, resource_variable_ops

_ControlFlowGraph = control_flow_v2_func_graphs.ControlFlowFuncGraph
_Variable = resource_variable_ops.BaseResourceVariable
_plain_read = _Variable._read_variable_op
_plain_capture = func_graph.FuncGraph.capture


class _Substitutions(threading.local):
    def __init__(self):
        self.stack = []


_substitutions = _Substitutions()


def _substitute(x, graph):
    """The innermost substitution for `x` in `graph`, or None."""
    for traced, substitute in reversed(_substitutions.stack):
        if _is_control_flow_inside(graph, traced):
            value = substitute(x)
            if value is not None:
                return value
    return None


def _read(variable, *args, **kwargs):
    """`BaseResourceVariable._read_variable_op`, unless this thread traces dynamics."""
    if _substitutions.stack:
        value = _substitute(variable, tf.compat.v1.get_default_graph())
        if value is not None:
            return value
    return _plain_read(variable, *args, **kwargs)


def _capture(graph, tensor, *args, **kwargs):
    """`FuncGraph.capture`, unless this thread traces dynamics."""
    if _substitutions.stack and _is_eager(tensor):
        value = _substitute(tensor, graph)
        tensor = tensor if value is None else value
    return _plain_capture(graph, tensor, *args, **kwargs)


_Variable._read_variable_op = _read
func_graph.FuncGraph.capture = _capture


def _is_eager(tensor):
    """Whether `tensor` is an eager tensor of numbers, not a handle."""
    return isinstance(tensor, ops.EagerTensor) and tensor.dtype not in (tf.resource, tf.variant)


def _is_control_flow_inside(graph, ancestor):
    """Whether `graph` is `ancestor` or a loop's or branch's body in it.

    The body of a nested `tf.function` does not count: its trace is cached by its owner and must
    not hold tensors of the solver.
    """
    while graph is not ancestor:
        if not isinstance(graph, _ControlFlowGraph):
            return False
        graph = graph.outer_graph
    return True


@contextlib.contextmanager
def substituted(substitute):
    """Lets `substitute` answer variable reads and captures of eager tensors in the current graph.

    Args:
        substitute: callable from a `tf.Variable` or an eager tensor to a tensor of an outer graph,
            or to None for what TensorFlow does by itself.
    """
    _substitutions.stack.append((tf.compat.v1.get_default_graph(), substitute))
    try:
        yield
    finally:
        _substitutions.stack.pop()


def storage(x):
    """What identifies a tensor, or a variable: its resource handle, whatever object wraps it."""
    return id(x.handle) if is_variable(x) else id(x)


def is_variable(x):
    """Whether `x` is a resource variable (one replica's, under `tf.distribute`)."""
    return isinstance(x, _Variable)

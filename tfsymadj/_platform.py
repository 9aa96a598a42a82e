"""The one place that reaches into TensorFlow's and Keras' private parts, and why.

TensorFlow has no public way to say "while this Python function is traced, let a variable's read,
or an eager tensor that it closes over, be that tensor of this graph". A backward pass needs it: a
gradient function that reads variables or captures eager tensors itself breaks inside
`keras.layers.RNN`, `tf.map_fn`, `tf.while_loop` and `tf.cond`, and variables that it gets through
`variables=` are read in the same place. So what the dynamics use is brought into the graph once,
outside of the solver, and the solver's loops see tensors of their graph (closure conversion).

Nor has Keras a public way to say "this `tf.Variable`, which somebody else made, is one of the
layer's variables" (`adopted`).

`tests/test_platform.py` fails on the day that one of the private names changes its meaning.
"""

import contextlib
import threading

import keras
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.framework import func_graph, op_def_registry, ops
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


def in_control_flow():
    """Whether the current graph is the body of a loop or a branch."""
    return isinstance(tf.compat.v1.get_default_graph(), _ControlFlowGraph)


def in_function_graph():
    """Whether operations are being traced into a `tf.function` (or a body inside of one)."""
    return isinstance(tf.compat.v1.get_default_graph(), func_graph.FuncGraph)


def is_stateful(op_type):
    """Whether TensorFlow registered the operation as stateful; True for an unknown one."""
    op_def = op_def_registry.get(op_type)
    return op_def is None or op_def.is_stateful


def tapes_record():
    """Whether any `tf.GradientTape` records."""
    return not pywrap_tfe.TFE_Py_TapeSetIsEmpty()


def recording_tapes(tensor):
    """How many of the recording tapes have seen how `tensor` was computed: 0, 1, or 2 for more."""
    return pywrap_tfe.TFE_Py_TapeSetPossibleGradientTypes([tensor])


class _AdoptedVariable(keras.Variable):
    """A Keras variable whose storage is a `tf.Variable` that there is already."""

    def __init__(self, variable):
        self._adopted = variable
        super().__init__(
            self._never_called,
            shape=tuple(variable.shape),
            dtype=variable.dtype.name,
            trainable=variable.trainable,
            name=variable.name.split(":")[0].replace("/", "_"),
        )

    def _initialize_with_initializer(self, initializer):
        self._initialize(self._adopted)

    @staticmethod
    def _never_called(shape, dtype=None):
        raise AssertionError


def adopted(variable):
    """The Keras variable of a `tf.Variable`: always the same, or it would be trained twice."""
    found = getattr(variable, "_tfsymadj_adopted", None)
    if found is None:
        found = variable._tfsymadj_adopted = _AdoptedVariable(variable)
    return found

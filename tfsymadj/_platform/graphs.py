"""Where operations are traced to, and what kinds of them there are."""

import tensorflow as tf
from tensorflow.python.framework import func_graph, op_def_registry
from tensorflow.python.ops import control_flow_v2_func_graphs

_ControlFlowGraph = control_flow_v2_func_graphs.ControlFlowFuncGraph
_WRAPPER = "cflow_gradient_wrapper"


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


def is_control_flow_inside(graph, ancestor):
    """Whether `graph` is `ancestor`, a loop's or branch's body in it, or the gradient of one."""
    while graph is not ancestor:
        # Under several tapes TensorFlow puts a branch or a loop into a function of its own.
        if not isinstance(graph, _ControlFlowGraph) and _WRAPPER not in getattr(graph, "name", ""):
            return False
        forward = getattr(graph, "_forward_graph", None)
        if forward is not None and is_control_flow_inside(forward, ancestor):
            return True
        graph = graph.outer_graph
    return True

"""Where we are, and what operations do."""

import tensorflow as tf

from tfsymadj import _platform


def test_where_we_are():
    seen = {}

    def look(name):
        seen[name] = _platform.in_function_graph(), _platform.in_control_flow()
        return tf.constant(0)

    look("eager")

    @tf.function
    def compute():
        look("function")
        tf.while_loop(lambda i: i < 1, lambda i: (i + 1 + look("while"),), (0,))
        tf.cond(tf.constant(True), lambda: look("cond"), lambda: tf.constant(1))
        tf.function(lambda: look("inner"))()

    compute()
    assert seen == {
        "eager": (False, False),
        "function": (True, False),
        "while": (True, True),
        "cond": (True, True),
        "inner": (True, False),
    }


def test_stateful_operations():
    for op in ("RandomStandardNormal", "AssignAddVariableOp", "EagerPyFunc", "PyFunc", "NoSuchOp"):
        assert _platform.is_stateful(op)
    for op in ("MatMul", "StatelessRandomNormalV2", "TensorListSetItem", "PartitionedCall"):
        assert not _platform.is_stateful(op)

"""What `tf.vectorized_map` is going to turn into operations on all elements at once.

It traces its function once, for an element that a placeholder stands for, and rewrites the
operations that depend on that. TensorFlow has no way to ask for it from inside.
"""

import tensorflow as tf


def differs_by_element(tensors):
    """Whether tensors of the current graph depend on the element of a `tf.vectorized_map`."""
    if tf.executing_eagerly() or "loop_body" not in tf.get_current_name_scope():
        return False
    graph = tf.compat.v1.get_default_graph()
    waiting = [x for x in tensors if not hasattr(x, "numpy")]
    seen = set()
    while waiting:
        op = waiting.pop().op
        if op.graph is not graph or op.name in seen:
            continue
        if op.type == "PlaceholderWithDefault" and "loop_body" in op.name:
            return True
        seen.add(op.name)
        waiting += op.inputs
    return False

"""When a result computed before may be used again.

TensorFlow Probability caches what bijectors compute by the identity of the inputs. That is wrong
once a variable has changed, and for a `GradientTape` that did not see the computation. The keys of
its caches, those of enclosing chains too, contain the hash of the bijector: with an `Epoch` in
that hash, a stale result is not found.
"""

import weakref

import tensorflow as tf

from tfsymadj import _platform

_READS = frozenset({"ReadVariableOp", "VariableShape", "DisableCopyOnRead", "VarIsInitializedOp"})


class Epoch:
    """A number that changes whenever results computed before must not be used again.

    Args:
        variables: the `tf.Variable`s that the results depend on.
    """

    def __init__(self, variables):
        self._variables = variables
        self._number = -1
        self._graph = lambda: None
        self._size = 0
        self._values = []
        self._marker = None

    def number(self):
        """The current number, an int."""
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        variables = self._variables
        if not (self._number >= 0 and self._holds(graph)):
            self._number += 1
            self._graph = (lambda: None) if graph is None else weakref.ref(graph)
            self._size = 0 if graph is None else len(graph.get_operations())
            # Held, so that an assignment gets memory of its own.
            self._values = [v.read_value() for v in variables] if graph is None else []
            self._marker = _marker(variables) if _platform.tapes_record() else None
        return self._number

    def _holds(self, graph):
        variables = self._variables
        if self._graph() is not graph:
            return False
        if _platform.tapes_record():
            # Each tape watches the variables that are read while it records: a result belongs to
            # the same tapes as a value that was read along with it.
            now = _marker(variables)
            if now is None or self._marker is None:
                return False
            tapes = _platform.recording_tapes(now)
            if tapes == 0 or tapes != _platform.recording_tapes(self._marker):
                return False
        if graph is None:
            return all(
                bool(tf.reduce_all(tf.equal(v.read_value(), x)))
                for v, x in zip(variables, self._values)
            )
        return not _written(graph, variables, self._size)


def _marker(variables):
    """A value of a variable that tapes watch; None if there is none."""
    return next((tf.identity(v.read_value()) for v in variables if v.trainable), None)


def _written(graph, variables, start):
    """Whether an operation of a graph from number `start` on may have changed a variable."""
    handles = {id(v.handle) for v in variables}
    captures = getattr(graph, "captures", ())
    handles |= {id(inside) for outside, inside in captures if id(outside) in handles}
    return any(
        op.type not in _READS and any(id(x) in handles for x in op.inputs)
        for op in graph.get_operations()[start:]
    )

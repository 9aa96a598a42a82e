"""What a flow has computed before, and when it may be used again.

The value and the log-determinant come from one solve, but are asked for one after the other, and
`log_prob` asks for that of a point by what the flow made of it. So a flow remembers its last
solves. They are used again only for the same tensors, while everything else that the dynamics
depend on is as it was: what they close over, variables, keywords, and the tapes that record.
"""

import collections
import threading
import weakref

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfsymadj import _platform
from tfsymadj._platform import bijectors, tape_states
from tfsymadj.dynamics import contents
from tfsymadj.dynamics.identity import Fingerprint

#: Solves that are remembered, enough for a chain in which one flow occurs several times.
_MOST_SOLVES = 16

#: What may be a keyword, besides variables, with results that are remembered.
_KNOWN = (bool, int, float, complex, type(None), np.ndarray, np.generic, tf.Tensor)

_READS = frozenset({"ReadVariableOp", "VariableShape", "DisableCopyOnRead", "VarIsInitializedOp"})
#: Python code, which may assign variables of which the graph knows nothing.
_ANYTHING = frozenset({"EagerPyFunc", "PyFunc"})


class FreshCache:
    """A bijector's `_cache` that forgets what may be stale.

    Args:
        forward_name: name of the bijector's method `(x, **keywords) -> (y, attributes)`, where the
            attributes are a dict with the log-determinant of the inverse, `"ildj"`.
        inverse_name: likewise `(y, **keywords) -> (x, attributes)`.
    """

    def __init__(self, forward_name, inverse_name, bijector=None):
        self._names = forward_name, inverse_name
        self._bijector = bijector

    def __get__(self, bijector, owner=None):
        return type(self)(*self._names, bijector)

    def forward(self, x, **keywords):
        return self._solved(x, False, keywords)[0]

    def inverse(self, y, **keywords):
        return self._solved(y, True, keywords)[0]

    def forward_attributes(self, x, **keywords):
        return self._solved(x, False, keywords, with_value=False)[1]

    def inverse_attributes(self, y, **keywords):
        return self._solved(y, True, keywords, with_value=False)[1]

    def _solved(self, x, inverse, keywords, with_value=True):
        """The value, which may be None without `with_value`, and the attributes."""
        memory = _memory(self._bijector, keywords)
        key = Fingerprint(keywords)
        value, attributes = memory.find(x, inverse, key) if memory else (None, None)
        if attributes is None or (with_value and value is None):
            value, attributes = getattr(self._bijector, self._names[inverse])(x, **keywords)
            if memory:
                memory.records.append(_Record(x, value, inverse, key, attributes))
        return value, attributes


class _Record:
    """One solve.

    A point lives no longer than its user wants, but with its image: `log_prob` of a sample must
    find where the sample came from.
    """

    def __init__(self, source, result, inverse, key, attributes):
        this = weakref.ref(self)

        def forget(_):
            record = this()
            if record is not None:
                record._kept = None

        self._source, self._result = weakref.ref(source), weakref.ref(result, forget)
        self._kept = source
        self.inverse, self.key, self.attributes = inverse, key, attributes

    def other_end(self, x, inverse):
        """`(found, value)`: whether this is the solve for `x`, and its value if it still exists."""
        here, there = self._source, self._result
        if inverse != self.inverse:
            here, there = there, here
        return here() is x, there()


class _Memory:
    """The last solves of one bijector, all of one state of what its dynamics depend on."""

    def __init__(self):
        self.records = collections.deque(maxlen=_MOST_SOLVES)
        self._state = None

    def refresh(self, state):
        if self._state is None or not self._state.still_holds(state):
            self.records.clear()
            self._state = state
            state.hold()

    def find(self, x, inverse, key):
        """`(value, attributes)`; each may be None."""
        for record in reversed(self.records):
            found, value = record.other_end(x, inverse)
            if found and record.key == key:
                return value, record.attributes
        return None, None


class _State:
    """What a bijector's results depend on, other than its input and the keywords' tensors.

    Args:
        key: fingerprint of the bijector's parameters.
        tapes: see `tape_states.recording_state`.
        variables: `tf.Variable`s, those among the keywords included.
    """

    def __init__(self, key, tapes, variables):
        self._key, self._tapes, self._variables = key, tapes, variables
        self._values = []
        self._start = 0

    def hold(self):
        """Notes the values of the variables, or in a graph the operations up to now."""
        if tf.executing_eagerly():
            with tape_states.unrecorded():
                # Held, so that an assignment gets memory of its own.
                self._values = [v.read_value() for v in self._variables]
        else:
            self._start = len(tf.compat.v1.get_default_graph().get_operations())

    def still_holds(self, now):
        """Whether nothing has changed since `hold`, where `now` is the state by other means."""
        if self._key != now._key or self._tapes != now._tapes:
            return False
        if [*map(_platform.storage, self._variables)] != [*map(_platform.storage, now._variables)]:
            return False
        if tf.executing_eagerly():
            with tape_states.unrecorded():
                return all(
                    _is_equal(v.read_value(), x) for v, x in zip(now._variables, self._values)
                )
        operations = tf.compat.v1.get_default_graph().get_operations()
        if _written(operations[self._start :], self._variables):
            return False
        self._start = len(operations)
        return True


_eager = threading.local()


def _memory(bijector, keywords):
    """The bijector's `_Memory`, up to date; None if nothing can be known to be so."""
    tapes = tape_states.recording_state()
    if tapes is None or not all(map(_is_known, tf.nest.flatten(keywords))):
        return None
    # With the graph, so that neither keeps the other one alive; or with the thread.
    owner = _eager if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    memories = getattr(owner, "_tfsymadj_memories", None)
    if memories is None:
        memories = owner._tfsymadj_memories = weakref.WeakKeyDictionary()
    memory = memories.get(bijector)
    if memory is None:
        memory = memories[bijector] = _Memory()
    parameters = dict(bijector.parameters)
    trained, frozen = contents.variables((parameters, keywords))
    memory.refresh(_State(Fingerprint(parameters), tapes, [*trained, *frozen]))
    return memory


def _is_known(x):
    """Whether a change of `x` shows in its fingerprint, or in the value of its variable."""
    x = x.value if isinstance(x, keras.Variable) else x
    return isinstance(x, _KNOWN) or _platform.is_variable(x)


def _is_equal(a, b):
    return a.shape == b.shape and bool(tf.reduce_all(tf.equal(a, b)))


def _written(operations, variables):
    """Whether one of some operations of the current graph may have changed a variable."""
    handles = {id(v.handle) for v in variables}
    captures = getattr(tf.compat.v1.get_default_graph(), "captures", ())
    handles |= {id(inside) for outside, inside in captures if id(outside) in handles}
    return any(
        op.type in _ANYTHING or (op.type not in _READS and any(id(x) in handles for x in op.inputs))
        for op in operations
    )


def _is_fresh(bijector):
    return isinstance(bijector._cache, (FreshCache, bijectors.NoCache))


# What holds a flow must ask it anew. It costs no solve: the flow remembers.
bijectors.replace_cache(
    tfp.bijectors.Bijector,
    bijectors.NoCache(),
    lambda bijector: any(map(_is_fresh, bijectors.parts(bijector))),
)

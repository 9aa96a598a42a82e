"""What Keras keeps for each thread while layers are called."""

import contextlib
import copy

from keras.src.backend.common import global_state

_CALL, _SCOPE = "current_call_ctx", "stateless_scope"


def stateless_scope():
    """The `keras.StatelessScope` that is entered, or None."""
    return global_state.get_global_attribute(_SCOPE)


def call_arguments():
    """What layers inherit from the layer in whose call they are called, such as `training`."""
    context = global_state.get_global_attribute(_CALL)
    found = {} if context is None else dict(vars(context))
    found.pop("entry_layer", None)
    return found


class CallState:
    """Keras' state at one time, to be entered at another: in a backward pass."""

    def __init__(self):
        self._scope = stateless_scope()
        context = global_state.get_global_attribute(_CALL)
        self._context = None
        if context is not None:
            self._context = copy.copy(context)
            self._context.entry_layer = None  # which this must not keep alive

    @contextlib.contextmanager
    def entered(self):
        """A context in which layers are called as they were at that time."""
        before = {name: global_state.get_global_attribute(name) for name in (_CALL, _SCOPE)}
        global_state.set_global_attribute(_CALL, copy.copy(self._context))
        global_state.set_global_attribute(_SCOPE, self._scope)
        try:
            yield
        finally:
            for name, value in before.items():
                global_state.set_global_attribute(name, value)

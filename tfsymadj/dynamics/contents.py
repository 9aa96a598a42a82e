"""What a callable is made of: the key under which its trace may be reused, and its frozen weights.

A compiled trace keeps the values that the dynamics closed over when it was made. So they are part
of the cache's key: closure cells, default arguments, referenced globals and bound objects; numbers
by value, tensors by identity, Keras layers with their `trainable` flags and dtype policies.
"""

import dis
import functools
import types
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import _platform

_BY_VALUE = (bool, int, float, complex, str, bytes, type(None), np.generic, tf.DType)
_MAX_ITEMS = 10_000


class _Identity:
    """Equal to another one while both hold the same living object; does not keep it alive."""

    def __init__(self, x):
        self._hash = id(x)
        try:
            self._get = weakref.ref(x)
        except TypeError:  # no weak references to it: hold it, so that its id isn't used again
            self._get = lambda: x

    def __hash__(self):
        return self._hash

    def __eq__(self, other):
        if not isinstance(other, _Identity):
            return NotImplemented
        mine = self._get()
        return mine is not None and mine is other._get()


def fingerprint(x):
    """A hashable key that changes when something that `x` closes over is rebound."""
    return _Walk().key(x)


def frozen_storages(x):
    """Storages (see `_platform.storage`) of Keras variables that are not trained."""
    walk = _Walk()
    walk.key(x)
    return {
        _platform.storage(variable._value)
        for layer in walk.layers
        for variable in layer.variables
        if not variable.trainable and _platform.is_variable(getattr(variable, "_value", None))
    }


def variables(x):
    """The `tf.Variable`s that a callable uses, as far as attributes and closures tell.

    Returns:
        `(trained, frozen)`: two lists without repetitions.
    """
    walk = _Walk()
    walk.key(x)
    frozen = frozen_storages(x)
    found = {}
    for variable in walk.variables:
        for part in tf.nest.flatten(getattr(variable, "_value", variable)):
            if _platform.is_variable(part):
                found.setdefault(_platform.storage(part), part)
    trained = [v for key, v in found.items() if v.trainable and key not in frozen]
    kept = {id(v) for v in trained}
    return trained, [v for v in found.values() if id(v) not in kept]


def keras_variables(x):
    """The Keras variables that a callable uses, by storage, as far as closures tell."""
    walk = _Walk()
    walk.key(x)
    return {
        _platform.storage(variable.value): variable
        for variable in walk.variables
        if isinstance(variable, keras.Variable)
    }


def refuse_unbuilt(x):
    """Refuses Keras layers that have no weights yet.

    Raises:
        ValueError: naming the layer.
    """
    walk = _Walk()
    walk.key(x)
    for layer in walk.layers:
        if not layer.built:
            raise ValueError(
                "`dynamics` must have their weights before a flow is made of them: call the layer "
                "once with a state of the right shape, or start a `Sequential` with "
                f"`keras.Input`. Received: layer {layer.name!r}, which is not built"
            )


def owner(x):
    """The object whose life a cached trace of the callable `x` is tied to."""
    if isinstance(x, functools.partial):
        return owner(x.func)
    return x.__self__ if isinstance(x, types.MethodType) else x


def weakly(x):
    """A callable that returns the callable `x` while its owner lives, else None."""
    if isinstance(x, functools.partial):
        inner, args, keywords = weakly(x.func), x.args, x.keywords

        def rebuild():
            function = inner()
            return None if function is None else functools.partial(function, *args, **keywords)

        return rebuild
    try:
        return weakref.WeakMethod(x) if isinstance(x, types.MethodType) else weakref.ref(x)
    except TypeError:
        return lambda: x


def losses(x):
    """The losses that the Keras layers of a callable have added so far: `[(layer, loss)]`."""
    walk = _Walk()
    walk.key(x)
    return [pair for layer in walk.layers for pair in _platform.collected_losses(layer)]


def refuse_losses(x, before):
    """Refuses Keras layers that add losses when they are called, which no solve can collect.

    Args:
        x: a callable.
        before: its `losses` of before the call: those are the business of whoever added them.

    Raises:
        ValueError: naming the layer.
    """
    known = {id(loss) for _, loss in before}
    added = [(layer, loss) for layer, loss in losses(x) if id(loss) not in known]
    for layer, loss in added:
        _platform.drop_loss(layer, loss)
    if added:
        raise ValueError(
            "`dynamics` must not add losses (`add_loss`, `activity_regularizer`): they would be "
            "those of single stages. Integrate the term as part of the state instead. "
            f"Received: layer {added[0][0].name!r}"
        )


class _Walk:
    def __init__(self):
        self.layers = []
        self.variables = []
        self._seen = set()

    def key(self, x):
        if isinstance(x, _BY_VALUE):
            return (type(x).__name__, repr(x))  # repr tells -0.0 from 0.0 and equals nan to nan
        if isinstance(x, np.ndarray):
            return ("array", x.shape, x.dtype.str, x.tobytes())
        if id(x) in self._seen or len(self._seen) > _MAX_ITEMS:
            return _Identity(x)
        self._seen.add(id(x))
        if isinstance(x, keras.Layer):
            self.layers.append(x)
            self.variables += x.variables
            return (_Identity(x), *(self._layer_state(x)))
        if isinstance(x, (keras.Variable, tf.Variable)):
            self.variables.append(x)
            return (_Identity(x), x.trainable)
        if isinstance(x, tf.Module):
            if getattr(x, "built", True) is False:  # a layer of `tf_keras`
                self.layers.append(x)
            self.variables += x.variables
            return (_Identity(x), *((_Identity(v), v.trainable) for v in x.variables))
        if isinstance(x, functools.partial):
            return ("partial", self.key(x.func), self.key(x.args), self.key(x.keywords))
        if isinstance(x, types.MethodType):
            return ("method", self.key(x.__self__), self.key(x.__func__))
        if isinstance(x, types.FunctionType):
            return ("function", _Identity(x.__code__), *self._function_state(x))
        for inside in ("python_function", "__wrapped__"):
            if hasattr(x, inside):
                return (_Identity(x), self.key(getattr(x, inside)))
        if isinstance(x, (list, tuple)):
            return (type(x).__name__, *(self.key(item) for item in x))
        if isinstance(x, dict):
            return ("dict", *((self.key(k), self.key(v)) for k, v in x.items()))
        if isinstance(x, types.ModuleType):
            return ("module", x.__name__)
        return _Identity(x)

    def _layer_state(self, layer):
        for part in layer._flatten_layers():
            yield part.dtype_policy.name
        for variable in layer.variables:
            yield _Identity(variable), variable.trainable

    def _function_state(self, function):
        yield self.key(function.__defaults__)
        yield self.key(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                yield self.key(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                yield "unbound"
        for name in _global_names(function.__code__):
            if name in function.__globals__:
                yield name, self.key(function.__globals__[name])


@functools.lru_cache(maxsize=4096)
def _global_names(code):
    """Names that the code looks up in its module, those of functions defined inside included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_global_names(constant))
    return tuple(sorted(names))

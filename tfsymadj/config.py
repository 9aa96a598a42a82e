"""Objects that are what their configuration says: equality, hash, printing and saving."""

import inspect
import math

import keras
import numpy as np
import tensorflow as tf


class Configured:
    """An immutable object with options: the base of controllers, gradients and traces.

    A subclass whose constructor takes arguments returns all of them from `get_config`, by name.
    Two objects are equal if they are of one class, with equal configs and attributes.

    Raises:
        TypeError: when a subclass is defined whose constructor takes arguments, but that inherits a
            `get_config` which can't know them.

    Example:

    >>> import tfsymadj
    >>> class Scaled(tfsymadj.Backprop):
    ...     def __init__(self, scale):
    ...         self.scale = scale
    ...
    ...     def get_config(self) -> dict:
    ...         return {"scale": self.scale}
    >>> Scaled(2.0), Scaled(2.0) == Scaled(2.0), Scaled(2.0) == Scaled(3.0)
    (Scaled(scale=2.0), True, False)
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            if "get_config" in vars(base):
                return
            if any(_takes_arguments(vars(base).get(name)) for name in ("__init__", "__new__")):
                raise TypeError(
                    f"`{cls.__name__}` must define `get_config`, which returns all arguments of "
                    "its constructor in a dict, or objects that differ would count as equal, and "
                    "a saved one would lose them; `return {**super().get_config(), ...}` adds to "
                    f"those of the base class. Received: {cls!r} without `get_config`"
                )

    def get_config(self) -> dict:
        """The constructor's arguments, a dict; they may be arrays and nests."""
        return {}

    @classmethod
    def from_config(cls, config: dict):
        """The object of a config, also of one that was serialized."""
        return cls(**{name: deserialized(value) for name, value in config.items()})

    def __eq__(self, other):
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(_key(f(self)) == _key(f(other)) for f in (type(self).get_config, vars))

    def __hash__(self):
        return hash((type(self), _key(self.get_config())))

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def is_int(x: object, least: float = -math.inf) -> bool:
    """Whether `x` is a Python or NumPy integer, at least `least`; a bool is not a number."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool) and bool(x >= least)


def is_real(x: object) -> bool:
    """Whether `x` is a real number of Python or NumPy; a bool is not a number."""
    return isinstance(x, (int, float, np.integer, np.floating)) and not isinstance(x, bool)


def _takes_arguments(constructor):
    """Whether a method that a class defines takes arguments besides the object."""
    if constructor is None:
        return False
    function = getattr(constructor, "__func__", constructor)  # `__new__` is a static method
    return len(inspect.signature(function).parameters) > 1


def deserialized(value):
    """`value`, where Keras serialized it: a method's table, an array, a tuple."""
    if type(value) in (list, tuple):
        return type(value)(deserialized(x) for x in value)
    if isinstance(value, dict) and "class_name" in value:
        return keras.saving.deserialize_keras_object(value)
    if isinstance(value, dict):
        return {name: deserialized(x) for name, x in value.items()}
    return value


def _key(x):
    """A hashable key of a config: equal for equal values of the same types."""
    if isinstance(x, dict):
        return ("dict", frozenset((_key(name), _key(value)) for name, value in x.items()))
    if isinstance(x, (list, tuple)):
        return (type(x), *(_key(item) for item in x))
    if tf.is_tensor(x) and hasattr(x, "numpy") and not isinstance(x, tf.Variable):
        x = x.numpy()
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, np.ndarray) and not x.dtype.hasobject:
        return ("array", x.dtype.str, x.shape, x.tobytes())
    if isinstance(x, (float, complex)):  # `repr` tells -0.0 from 0.0, and nan equals nan
        return (type(x), repr(x))
    try:
        hash(x)
    except TypeError:  # by identity: what can't be compared is never taken for equal
        return ("object", id(x))
    return (type(x), x)

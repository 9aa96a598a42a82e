"""Copies and pickles of those distributions and bijectors that can't be made without arguments.

TensorFlow Probability chooses a class in their `__new__`, by its arguments, which `copy` and
`pickle` don't give. It makes its own copies of the parameters, and so is done here. Imported by
name, where flows are wanted.
"""

import copyreg
import inspect

import tensorflow_probability as tfp


def _made(cls, parameters):
    return cls(**parameters)


def _reduce(x):
    return _made, (type(x), dict(x.parameters))


def _needs_arguments(cls):
    try:
        cls.__new__(cls)
    except (TypeError, IndexError, KeyError):
        return True
    return False


def register():
    """Tells `copy` and `pickle` how to copy them; those that can be copied are left alone."""
    for module, base in (
        (tfp.distributions, tfp.distributions.Distribution),
        (tfp.bijectors, tfp.bijectors.Bijector),
    ):
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, base) and _needs_arguments(cls):
                copyreg.pickle(cls, _reduce)

"""The caches of TensorFlow Probability's bijectors, replaced where their answers could be stale.

A bijector finds what it computed before by the identity of the input and of the keywords, whatever
has happened to variables, tapes and attributes since; so does each one that holds it, such as
`tfb.Chain`, without asking. The cache is the class attribute `_cache`, an object with the methods
`forward`, `inverse`, `forward_attributes` and `inverse_attributes`.
"""

import tensorflow_probability as tfp


class NoCache:
    """A `_cache` that keeps nothing."""

    def __init__(self, bijector=None):
        self._bijector = bijector

    def __get__(self, bijector, owner=None):
        return type(self)(bijector)

    def forward(self, x, **keywords):
        return self._bijector._forward(x, **keywords)

    def inverse(self, y, **keywords):
        return self._bijector._inverse(y, **keywords)

    def forward_attributes(self, x, **keywords):
        return {}

    inverse_attributes = forward_attributes


class _Replaced:
    """The `_cache` of a class, but another one for those bijectors that `applies` to."""

    def __init__(self, usual, other, applies):
        self._usual, self._other, self._applies = usual, other, applies

    def __get__(self, bijector, owner=None):
        other = bijector is not None and self._applies(bijector)
        return (self._other if other else self._usual).__get__(bijector, owner)


def replace_cache(bijector_class, cache, applies):
    """Gives the bijectors of a class that `applies` to, a function to bool, another `_cache`."""
    bijector_class._cache = _Replaced(vars(bijector_class)["_cache"], cache, applies)


def parts(bijector):
    """The bijectors that a bijector was made of, or that are its attributes."""
    waiting = [bijector.parameters, *vars(bijector).values()]
    while waiting:
        x = waiting.pop()
        if isinstance(x, tfp.bijectors.Bijector):
            yield x
        elif isinstance(x, dict):
            waiting += x.values()
        elif isinstance(x, (list, tuple)):
            waiting += x

"""Keras variables of `tf.Variable`s that somebody else made."""

import keras


class _AdoptedVariable(keras.Variable):
    """A Keras variable whose storage is a `tf.Variable` that there is already."""

    def __init__(self, variable):
        self._adopted = variable
        super().__init__(
            self._never_called,
            shape=tuple(variable.shape),
            dtype=variable.dtype.name,
            trainable=variable.trainable,
            name=variable.name.split(":")[0].replace("/", "_"),
        )

    def _initialize_with_initializer(self, initializer):
        self._initialize(self._adopted)

    @staticmethod
    def _never_called(shape, dtype=None):
        raise AssertionError


def adopted(variable):
    """The Keras variable of a `tf.Variable`: always the same, or it would be trained twice."""
    found = getattr(variable, "_tfsymadj_adopted", None)
    if found is None:
        found = variable._tfsymadj_adopted = _AdoptedVariable(variable)
    return found

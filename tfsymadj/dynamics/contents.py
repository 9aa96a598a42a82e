"""What the user's callable holds: Keras layers, variables, what is frozen."""

import keras
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.dynamics.identity import Contents


def frozen_storages(x):
    """Storages (see `_platform.storage`) of Keras variables that are not trained."""
    walk = Contents(x)
    return {
        _platform.storage(variable._value)
        for layer in walk.layers
        for variable in getattr(layer, "variables", ())
        if not variable.trainable and _platform.is_variable(getattr(variable, "_value", None))
    }


def variables(x):
    """The `tf.Variable`s that a callable uses, as far as attributes and closures tell.

    Returns:
        `(trained, frozen)`: two lists without repetitions.
    """
    walk = Contents(x)
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
    walk = Contents(x)
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
    walk = Contents(x)
    for layer in walk.layers:
        if not layer.built:
            raise ValueError(
                "`dynamics` must have their weights before a flow is made of them: call the layer "
                "once with a state of the right shape, or start a `Sequential` with "
                f"`keras.Input`. Received: layer {layer.name!r}, which is not built"
            )


def losses(x):
    """The losses that the Keras layers of a callable have added so far: `[(layer, loss)]`."""
    return [pair for layer in Contents(x).layers for pair in _platform.collected_losses(layer)]


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

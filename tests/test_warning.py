"""Where warnings point."""

import inspect
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.problems import forced

import tfsymadj
from tfsymadj import METHODS, PIController


def decay(t, y):
    return -y


def here():
    """The line that calls this."""
    return sys._getframe(1).f_lineno


@pytest.mark.slow
def test_warnings_point_at_the_caller():
    y0 = tf.ones([2])
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), rtol=1e-12)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")

    def compiled():
        return tfsymadj.odeint(decay, y0, [0.0, 1.0], rtol=1e-12)

    lines = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfsymadj.solve(decay, y0, [0.0, 1.0], rtol=1e-12), lines.append(here())
        tfsymadj.odeint(decay, y0, [0.0, 1.0], rtol=1e-12), lines.append(here())
        tfsymadj.odeint(forced, y0, [1.7e9, 1.7e9 + 1.0]), lines.append(here())
        layer(tf.ones([1, 2])), lines.append(here())
        model.fit(np.ones((2, 2)), np.ones((2, 2)), verbose=0), lines.append(here())
        model.predict(np.ones((2, 2)), verbose=0), lines.append(here())
        tf.function(compiled)(), lines.append(inspect.getsourcelines(compiled)[1] + 1)
        tf.function(compiled, autograph=False)(), lines.append(lines[-1])
    caught = [w for w in caught if w.category is UserWarning]
    assert [w.filename for w in caught] == [__file__] * len(caught)
    assert sorted({w.lineno for w in caught}) == sorted(set(lines))


def test_controller_objects_warn_as_well():
    with pytest.warns(UserWarning, match="`rtol`") as caught:
        tfsymadj.odeint(decay, tf.ones([1]), [0.0, 1.0], controller=PIController(1e-12))
    assert caught[0].filename == __file__
    assert METHODS["dopri5"].adaptive

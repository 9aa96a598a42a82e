"""Caches and parts of bijectors."""

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfsymadj._platform import bijectors

tfb, tfd = tfp.bijectors, tfp.distributions


def test_caches_of_bijectors():
    """The attribute and its four methods are all that a bijector uses of its cache."""

    class Own(tfb.Bijector):
        calls = 0
        _cache = bijectors.NoCache()

        def __init__(self):
            super().__init__(forward_min_event_ndims=0, parameters={})

        def _forward(self, x):
            Own.calls += 1
            return 2.0 * x

        def _inverse(self, y):
            Own.calls += 1
            return y / 2.0

        def _forward_log_det_jacobian(self, x):
            return tf.math.log(2.0) * tf.ones_like(x)

    own, x = Own(), tf.ones([3])
    for call in (own.forward, own.forward, own.inverse, own.inverse):
        call(x)
    assert Own.calls == 4
    own.forward_log_det_jacobian(x), own.inverse_log_det_jacobian(x)
    exp = tfb.Exp()
    assert exp.inverse(exp.forward(x)) is x  # an ordinary one remembers


def test_cache_is_replaced_for_some():
    class Some(tfb.Exp):
        _cache = vars(tfb.Bijector)["_cache"]

    bijectors.replace_cache(Some, bijectors.NoCache(), lambda b: b.name == "forgets")
    usual, other, x = Some(), Some(name="forgets"), tf.ones([3])
    assert isinstance(other._cache, bijectors.NoCache)
    assert not isinstance(usual._cache, bijectors.NoCache)
    assert other.inverse(other.forward(x)) is not x and usual.inverse(usual.forward(x)) is x


@pytest.mark.parametrize(
    "hold",
    [
        lambda b: tfb.Chain([b]),
        lambda b: tfb.Invert(b),
        lambda b: tfb.JointMap({"a": b, "b": tfb.Exp()}),
        lambda b: tfb.Blockwise([b]),
    ],
)
def test_parts(hold):
    bijector = tfb.Scale(2.0)
    assert any(x is bijector for x in bijectors.parts(hold(bijector)))

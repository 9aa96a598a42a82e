"""Copies of bijectors and distributions."""

import copy

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfsymadj._platform import copies

tfb, tfd = tfp.bijectors, tfp.distributions


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfd.Independent(tfd.Normal([0.0, 1.0], 1.0), 1),
        lambda: tfd.Sample(tfd.Normal(0.0, 1.0), 2),
        lambda: tfd.MultivariateNormalDiag([0.0, 1.0]),
        lambda: tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), 2), tfb.Exp()),
    ],
)
def test_copies_of_distributions(make):
    copies.register()
    distribution, x = make(), tf.constant([0.5, 1.5])
    copied = copy.deepcopy(distribution)
    assert type(copied) is type(distribution)
    assert float(copied.log_prob(x)) == float(distribution.log_prob(x))

"""What discrete data need before and after a density on the real line: noise, logit, bits."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfsymadj.bijectors.seeds import as_seed_pair, uniform


def dequantize(x: Any, levels: int, seed: Any, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Spreads each level of discrete data uniformly over an interval of its own.

    Returns `(x + u) / levels` with u uniform in (0, 1), independent for each entry. A density that
    is fitted to the result cannot win by collapsing onto the levels, and bounds the probabilities
    of the discrete data, see `bits_per_dimension` (Theis, van den Oord and Bethge,
    arXiv:1511.01844, section 3.1).

    Equal seeds give equal noise, in eager mode, in graphs and under XLA; for fresh noise in each
    epoch or step make its number part of the seed.

    Args:
        x: integer or floating tensor of any shape with the values 0, 1, ..., levels - 1. An entry
            that is none of them gives NaN.
        levels: number of levels, an integer of at least 2, such as 256 for images of 8 bits.
        seed: integer, or pair of integers; also as a tensor.
        dtype: `tf.float32` (default) or `tf.float64`. In float32, `x + u` is rounded to about 24
            bits, of which 16 are left for the noise if there are 256 levels.

    Returns:
        Tensor of `dtype` with the shape of `x`, strictly between 0 and 1. If `levels` is a power
        of two, `tf.floor(levels * result)` is `x` again.

    Raises:
        ValueError: if `levels` is not an integer of at least 2, or `seed` not of shape () or (2,).
        TypeError: if `x` is neither integer nor floating, `seed` is not integer, or `dtype` is
            another one.

    Example:

    >>> import tensorflow as tf
    >>> from tfsymadj.bijectors.discrete import dequantize
    >>> images = tf.constant([[0, 255], [17, 128]], tf.uint8)
    >>> x = dequantize(images, levels=256, seed=(0, 1))
    >>> tf.cast(tf.floor(256.0 * x), tf.int32).numpy().tolist()
    [[0, 255], [17, 128]]
    """
    _check_levels(levels)
    dtype = tf.as_dtype(dtype)
    if dtype not in (tf.float32, tf.float64):
        raise TypeError(f"`dtype` must be float32 or float64. Received: {dtype.name}")
    x = tf.convert_to_tensor(x)
    if not (x.dtype.is_integer or x.dtype.is_floating):
        raise TypeError(f"`x` must be integer or floating. Received: {x.dtype.name}")
    x = tf.cast(x, dtype)
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    u = uniform(tf.shape(x), as_seed_pair(seed), dtype)
    # u can be 0, and is eps if it is not. Graphs would reorder the sum if a constant were added.
    u = tf.maximum(u, 0.5 * eps)
    # XLA turns divisions by constants into products, which round differently: so these are
    # products. x + u may be rounded up to x + 1, which is in the next level, or 1 after the last.
    y = tf.minimum((x + u) * (1.0 / levels), (x + 1.0) * ((1.0 - eps) / levels))
    is_level = (x >= 0.0) & (x < levels) & tf.equal(x, tf.floor(x))
    return tf.where(is_level, y, tf.constant(math.nan, dtype))


class Logit(tfp.bijectors.Bijector):
    """Maps data in [0, 1] to the real line, elementwise: `logit(alpha + (1 - 2 alpha) x)`.

    A distribution on the real line becomes one of the data by
    `tfd.TransformedDistribution(distribution, tfb.Invert(Logit()))` (RealNVP: Dinh, Sohl-Dickstein
    and Bengio, arXiv:1605.08803, section 4.1; symmetric in x and 1 - x as in Papamakarios, Pavlakou
    and Murray, arXiv:1705.07057).

    With `alpha > 0` the ends 0 and 1 have finite images. The default of 0.05, that of RealNVP,
    takes [0, 1] to [-2.94, 2.94], about where a standard normal has its mass, with slopes between
    3.6 and 19: black and white pixels do not become outliers that dominate the likelihood. With
    1e-6 the ends are at -13.8 and 13.8, with a slope of 1e6.

    What is mapped onto the whole real line is the interval from `-alpha / (1 - 2 alpha)` to
    `1 + alpha / (1 - 2 alpha)`. So samples can lie a little outside of [0, 1], and some of the
    distribution's mass is there. At the ends of that interval the results are infinite, beyond
    them NaN.

    Args:
        alpha: number in [0, 0.5), how far the data are drawn in from the ends; default 0.05.
        validate_args: as for any bijector; there is nothing more to validate here.
        name: of the bijector.

    Raises:
        ValueError: if `alpha` is not a number in [0, 0.5).

    Example:

    >>> from tfsymadj.bijectors.discrete import Logit
    >>> logit = Logit(alpha=0.05)
    >>> y = logit.forward([0.0, 0.5, 1.0])
    >>> [round(float(value), 3) for value in y]
    [-2.944, 0.0, 2.944]
    >>> [abs(round(float(value), 3)) for value in logit.inverse(y)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, alpha: float = 0.05, validate_args: bool = False, name: str = "logit"):
        parameters = dict(locals())
        # The negation also refuses NaN.
        if not isinstance(alpha, int | float) or not 0.0 <= alpha < 0.5:
            raise ValueError(f"`alpha` must be a number in [0, 0.5). Received: {alpha!r}")
        with tf.name_scope(name) as name:
            self.alpha = float(alpha)
            super().__init__(
                forward_min_event_ndims=0,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @classmethod
    def _is_increasing(cls):
        return True

    @classmethod
    def _parameter_properties(cls, dtype):
        # `alpha` is no tensor: it has neither a batch shape nor a gradient.
        return {}

    def _logs(self, x):
        """Logarithms of p = alpha + (1 - 2 alpha) x and of 1 - p."""
        scale = 1.0 - 2.0 * self.alpha
        # 1 - x is exact near the upper end, where 1 - p would cancel.
        return tf.math.log(self.alpha + scale * x), tf.math.log(self.alpha + scale * (1.0 - x))

    def _forward(self, x):
        log_p, log_q = self._logs(x)
        return log_p - log_q

    def _inverse(self, y):
        return (tf.sigmoid(y) - self.alpha) / (1.0 - 2.0 * self.alpha)

    def _forward_log_det_jacobian(self, x):
        log_p, log_q = self._logs(x)
        return math.log1p(-2.0 * self.alpha) - log_p - log_q

    def _inverse_log_det_jacobian(self, y):
        log_scale = math.log1p(-2.0 * self.alpha)
        return -tf.math.softplus(-y) - tf.math.softplus(y) - log_scale


def bits_per_dimension(
    log_prob: tf.Tensor, event_size: int, levels: int | None = None
) -> tf.Tensor:
    """Negative log-likelihood of discrete data in bits per dimension, from a density.

    Let p be the density of the dequantized data y in [0, 1]^D. That of `levels * y`, the data on
    the scale of their integers, is `p(y) / levels^D`, and its mean logarithm over the noise is a
    lower bound of the log-probability of the discrete data. With `levels` given, the result is

        -(log p(y) / D - log(levels)) / log(2)

    and without, with log-densities that belong to the scale of the integers already,
    `-log_prob / (D log(2))`. Averaged over data and noise it is an upper bound of the bits per
    dimension in which the model codes the data (Theis, van den Oord and Bethge, arXiv:1511.01844,
    section 3.1). A uniform density needs all `log2(levels)` bits.

    Args:
        log_prob: floating tensor of any shape, natural logarithms of densities of whole events.
            With `levels`, the density must be that of the output of `dequantize`: if the model
            sees another variable, such as the logit of the data, the log-determinant has to be in
            it, as in `TransformedDistribution(..., Invert(Logit()))`.
        event_size: D, the number of entries of one event (pixels times channels).
        levels: number of levels, or None (default): see above.

    Returns:
        Tensor like `log_prob`; take its mean over the data.

    Raises:
        ValueError: if `event_size` is not a positive integer, or `levels` is neither None nor an
            integer of at least 2.
        TypeError: if `log_prob` is not floating.

    Example:

    >>> from tfsymadj.bijectors.discrete import bits_per_dimension
    >>> float(bits_per_dimension(0.0, event_size=784, levels=256))
    8.0
    """
    if isinstance(event_size, bool) or not isinstance(event_size, int) or event_size < 1:
        raise ValueError(f"`event_size` must be a positive integer. Received: {event_size!r}")
    log_prob = tf.convert_to_tensor(log_prob)
    if not log_prob.dtype.is_floating:
        raise TypeError(f"`log_prob` must be floating. Received: {log_prob.dtype.name}")
    bits = -log_prob / (event_size * math.log(2.0))
    if levels is None:
        return bits
    _check_levels(levels)
    return bits + math.log2(levels)


def _check_levels(levels):
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"`levels` must be an integer of at least 2. Received: {levels!r}")

"""The divergence of the dynamics: the trace of their Jacobian, exact or estimated.

All estimates use vector-Jacobian products with noise that is drawn before the solve and stays the
same during it, so that the augmented dynamics are an ordinary ODE with an exact gradient.
"""

import tensorflow as tf

from tfsymadj.bijectors.seeds import normal
from tfsymadj.config import Configured, is_int


class Trace(Configured):
    """How the divergence is computed; derive your own from this class.

    `__call__` is needed, `draw` if it uses noise, and `get_config` if the constructor takes
    arguments.
    """

    def draw(self, seed: tf.Tensor, shape: tf.Tensor, dtype: tf.DType) -> tuple:
        """The noise of one solve.

        Args:
            seed: int64 tensor of two entries.
            shape: int32 tensor, that of the states: one batch axis, then the event.
            dtype: that of the states.

        Returns:
            A tuple of tensors whose first axis is the batch.
        """
        return ()

    def __call__(
        self, field: "Field", y: tf.Tensor, noise: tuple, with_norm: bool = False
    ) -> tuple:
        """The dynamics and their divergence at one point of time.

        Args:
            field: `Field`.
            y: tensor `(batch, *event)`.
            noise: of `draw`.
            with_norm: whether the squared Frobenius norm of the Jacobian is wanted.

        Returns:
            `(dy, divergence, norm)`: a tensor like `y`, and two of shape `(batch,)`; `norm` is None
            if it is not wanted.
        """
        raise NotImplementedError


class Field:
    """The dynamics at one time as a function of the state alone.

    Args:
        function: `(y, conditions) -> dy`.
        conditions: tuple of nests of tensors, the batch first; scalars are shared.
        divergence: `(y, conditions) -> divergence` in closed form, or None.
    """

    def __init__(self, function, conditions=(), divergence=None):
        self._function, self._conditions, self._divergence = function, conditions, divergence

    @property
    def has_divergence(self):
        """Whether there is a closed form."""
        return self._divergence is not None

    def __call__(self, y):
        return self._function(y, self._conditions)

    def divergence(self, y):
        """The closed form, shape `(batch,)`."""
        return tf.ensure_shape(self._divergence(y, self._conditions), y.shape[:1])

    def repeated(self, count):
        """The same for `count` copies of the batch, one after another."""

        def repeat(x):
            return x if x.shape.rank == 0 else tf.tile(x, [count] + [1] * (x.shape.rank - 1))

        return Field(self._function, tf.nest.map_structure(repeat, self._conditions))


class ExactTrace(Trace):
    """The trace itself: a vector-Jacobian product for each of the D dimensions of an event.

    They are taken at once, on D copies of the batch; no sample may depend on another one. Dynamics
    that have a method `divergence(t, y, *args)`, of shape `(batch,)`, are asked for it instead.

    Example:

    >>> import tensorflow as tf
    >>> from tfsymadj.bijectors import CNF, ExactTrace
    >>> flow = CNF(lambda t, y: 2.0 * y, trace=ExactTrace(), rtol=1e-6)
    >>> bool(tf.abs(flow.forward_log_det_jacobian([[1.0, 2.0]])[0] - 4.0) < 1e-5)
    True
    """

    def __call__(
        self, field: "Field", y: tf.Tensor, noise: tuple, with_norm: bool = False
    ) -> tuple:
        if field.has_divergence and not with_norm:
            return field(y), field.divergence(y), None
        size = y.shape[1:].num_elements()
        if size is None:
            raise ValueError(
                "The exact trace needs the shape of an event to be known. Give the input a static "
                f"event shape, or use `trace='hutchinson'`. Received: shape {y.shape}"
            )
        batch = tf.shape(y)[0]
        unit = tf.repeat(tf.eye(size, dtype=y.dtype), batch, axis=0)
        copies = tf.tile(y, [size] + [1] * (y.shape.rank - 1))
        dy, products = _vjps(field.repeated(size), copies, [tf.reshape(unit, tf.shape(copies))])
        # Row i of the Jacobian of each sample: [size, batch, size].
        rows = tf.reshape(products[0], [size, batch, size])
        # Not as one einsum: `tape.jacobian` can't vectorize the derivative of that.
        divergence = tf.linalg.trace(tf.transpose(rows, [1, 0, 2]))
        divergence = tf.ensure_shape(divergence, y.shape[:1])
        norm = tf.ensure_shape(tf.reduce_sum(rows**2, [0, 2]), y.shape[:1]) if with_norm else None
        return tf.ensure_shape(dy[:batch], y.shape), divergence, norm


class HutchinsonTrace(Trace):
    """Hutchinson's estimate: the mean of e^T J e over noise vectors e.

    Unbiased for noise of mean zero and unit covariance. One vector-Jacobian product a sample.

    Args:
        noise: `"rademacher"` (entries of +-1, the least variance) or `"gaussian"`.
        num_samples: number of noise vectors of each sample.

    Example:

    >>> from tfsymadj.bijectors import CNF, HutchinsonTrace
    >>> flow = CNF(lambda t, y: -y, trace=HutchinsonTrace("gaussian", num_samples=4), seed=1)
    >>> flow.forward_log_det_jacobian([[1.0, 2.0]]).shape
    TensorShape([1])

    Source: Hutchinson, Communications in Statistics 18 (1989); in flows: Grathwohl et al., FFJORD,
    arXiv:1810.01367.
    """

    def __init__(self, noise: str = "rademacher", num_samples: int = 1):
        if noise not in _NOISES:
            raise ValueError(f"`noise` must be one of {sorted(_NOISES)}. Received: {noise!r}")
        self.noise = noise
        self.num_samples = _positive("num_samples", num_samples, 1)

    def get_config(self):
        return {"noise": self.noise, "num_samples": self.num_samples}

    def draw(self, seed: tf.Tensor, shape: tf.Tensor, dtype: tf.DType) -> tuple:
        return tuple(
            _NOISES[self.noise](seed + tf.constant([0, k], tf.int64), shape, dtype)
            for k in range(self.num_samples)
        )

    def __call__(
        self, field: "Field", y: tf.Tensor, noise: tuple, with_norm: bool = False
    ) -> tuple:
        dy, products = _vjps(field, y, noise)
        divergence = _mean([_dot(e, p) for e, p in zip(noise, products)])
        return dy, divergence, _mean([_dot(p, p) for p in products]) if with_norm else None


class HutchPlusPlusTrace(Trace):
    """Hutch++: exact on a random subspace of the Jacobian's range, estimated on the rest.

    It pays where the Jacobian is close to one of low rank: the error falls as 1 / num_samples
    instead of 1 / sqrt(num_samples). `num_samples` is the number of vector-Jacobian products: a
    third to find the subspace, a third for the trace on it, and a third for the rest.

    Args:
        num_samples: a multiple of 3.

    Example:

    >>> from tfsymadj.bijectors import CNF, HutchPlusPlusTrace
    >>> flow = CNF(lambda t, y: -y, trace=HutchPlusPlusTrace(3), seed=1)
    >>> flow.forward_log_det_jacobian([[1.0, 2.0, 3.0]]).shape
    TensorShape([1])

    Source: Meyer, Musco, Musco, Woodruff, Hutch++: Optimal Stochastic Trace Estimation,
    arXiv:2010.09649, algorithm 1.
    """

    def __init__(self, num_samples: int = 3):
        self.num_samples = _positive("num_samples", num_samples, 3)
        if self.num_samples % 3:
            raise ValueError(f"`num_samples` must be a multiple of 3. Received: {num_samples!r}")

    def get_config(self):
        return {"num_samples": self.num_samples}

    def draw(self, seed: tf.Tensor, shape: tf.Tensor, dtype: tf.DType) -> tuple:
        return tuple(
            _rademacher(seed + tf.constant([0, k], tf.int64), shape, dtype)
            for k in range(2 * self.num_samples // 3)
        )

    def __call__(
        self, field: "Field", y: tf.Tensor, noise: tuple, with_norm: bool = False
    ) -> tuple:
        if with_norm:
            raise ValueError(
                "Hutch++ gives no estimate of the Jacobian's norm: use `trace='hutchinson'` or "
                f"`'exact'` with `regularizers=['jacobian_norm']`. Received: trace={self!r}"
            )
        third = self.num_samples // 3
        shape = tf.shape(y)
        flat = [shape[0], -1] if y.shape[1:].num_elements() is None else [
            shape[0], y.shape[1:].num_elements()
        ]  # fmt: skip

        def as_columns(vectors):
            return tf.stack([tf.reshape(v, flat) for v in vectors], axis=-1)

        def as_events(columns):
            return [tf.reshape(v, shape) for v in tf.unstack(columns, third, axis=-1)]

        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(y)
            dy = _checked(field(y), y)

        def products(vectors):
            return as_columns([_gradient(tape, dy, y, v) for v in vectors])

        # The transposed Jacobian has the same trace: its range is that of the products.
        basis, _ = tf.linalg.qr(products(noise[:third]))
        probes = as_columns(noise[third:])
        rest = probes - basis @ tf.matmul(basis, probes, transpose_a=True)
        found = tf.reduce_sum(basis * products(as_events(basis)), [1, 2])
        estimated = tf.reduce_sum(rest * products(as_events(rest)), [1, 2]) / third
        return dy, tf.ensure_shape(found + estimated, y.shape[:1]), None


TRACES = {
    "exact": ExactTrace,
    "hutchinson": HutchinsonTrace,
    "hutch++": HutchPlusPlusTrace,
}


def get_trace(trace):
    """The `Trace` of a name; objects are returned as they are."""
    if isinstance(trace, Trace):
        return trace
    if isinstance(trace, str) and trace in TRACES:
        return TRACES[trace]()
    raise ValueError(f"`trace` must be one of {list(TRACES)} or a `Trace`. Received: {trace!r}")


def _rademacher(seed, shape, dtype):
    # The algorithm is named because the default one differs between graphs and XLA.
    bits = tf.random.stateless_uniform(shape, seed, 0, 2, tf.int32, alg="philox")
    return tf.cast(2 * bits - 1, dtype)


def _gaussian(seed, shape, dtype):
    return normal(shape, seed, dtype)


_NOISES = {"gaussian": _gaussian, "rademacher": _rademacher}


def _vjps(field, y, cotangents):
    """The field at `y` and its vector-Jacobian products, all of one evaluation."""
    with tf.GradientTape(persistent=len(cotangents) > 1, watch_accessed_variables=False) as tape:
        tape.watch(y)
        dy = _checked(field(y), y)
    return dy, [_gradient(tape, dy, y, e) for e in cotangents]


def _gradient(tape, dy, y, cotangent):
    product = tape.gradient(dy, y, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.ensure_shape(tf.convert_to_tensor(product), y.shape)


def _checked(dy, y):
    dy = tf.convert_to_tensor(dy)
    if dy.dtype != y.dtype:
        raise TypeError(
            f"`dynamics` must return the dtype of the input, {y.dtype.name}; cast one of them. "
            f"Received: {dy.dtype.name}"
        )
    if not dy.shape.is_compatible_with(y.shape):
        raise ValueError(
            f"`dynamics` must return the shape of the state, {y.shape}. Received: {dy.shape}"
        )
    return tf.ensure_shape(dy, y.shape)


def _dot(a, b):
    """The inner product over the event, shape `(batch,)`."""
    return tf.reduce_sum(a * b, list(range(1, a.shape.rank)))


def _mean(terms):
    return sum(terms[1:], terms[0]) / len(terms)


def _positive(name, value, least):
    if not is_int(value, least):
        raise ValueError(f"`{name}` must be an int, at least {least}. Received: {value!r}")
    return int(value)

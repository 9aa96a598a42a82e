"""Layers for neural controlled differential equations: dz = f(z) dX, where X is a series.

Kidger, Morrill, Foster, Lyons: Neural Controlled Differential Equations for Irregular Time Series,
arXiv:2005.08926.
"""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import Unpack

from tfsymadj import _platform, controls
from tfsymadj.dynamics import calling
from tfsymadj.layers.ode_layer import LayerOptions, ODELayer
from tfsymadj.options import documented, with_options

_INTERPOLATIONS = ("hermite", "linear", "rectilinear")


@keras.saving.register_keras_serializable(package="tfsymadj")
class ControlledDynamics(keras.Layer):
    """dz/dt = f(z) dX/dt, where f(z) is a matrix and X a control.

    Args:
        network: Keras layer from the state `(batch, hidden)` to `(batch, hidden * channels)`, the
            rows of the matrix one after the other. Its last activation is best a bounded one, as
            tanh.

    Call arguments:
        t: the time, a scalar tensor, or `(batch,)` for times of each example.
        z: state `(batch, hidden)`.
        control: `tfsymadj.controls.Control` of `channels` channels, with a batch axis or without.

    Output shape:
        That of `z`.

    Raises:
        ValueError: if the network returns another number of entries.

    Example:

    >>> import keras, tfsymadj
    >>> control = tfsymadj.controls.hermite([0.0, 1.0, 3.0], [[0.0, 1.0], [1.0, 2.0], [0.0, 4.0]])
    >>> dynamics = tfsymadj.layers.ControlledDynamics(keras.layers.Dense(3 * 2, "tanh"))
    >>> layer = tfsymadj.ODELayer(dynamics, t=(0.0, 3.0))
    >>> layer(keras.ops.ones((4, 3)), args=(control,)).shape
    TensorShape([4, 3])

    Source: Kidger et al., arXiv:2005.08926, eq. (4) and (5).
    """

    def __init__(self, network: keras.Layer, **kwargs):
        # Neither times nor the control must be in half precision.
        super().__init__(**{"autocast": False, **kwargs})
        self.supports_masking = True
        if not isinstance(network, keras.Layer):
            raise TypeError(f"`network` must be a Keras layer. Received: {network!r}")
        self.network = network

    @property
    def layers(self):
        """What `summary(expand_nested=True)` expands."""
        return [self.network]

    def build(self, t_shape, z_shape, control_shape):
        calling.build_layer(self.network, keras.KerasTensor(z_shape, self.compute_dtype))

    def call(self, t, z, control):
        slope = tf.cast(control.derivative(t), z.dtype)
        matrix = tf.cast(self.network(z), z.dtype)
        self._check(matrix, z, slope.shape[-1])
        matrix = tf.reshape(matrix, [-1, z.shape[-1], slope.shape[-1]])
        return tf.reduce_sum(matrix * slope[..., tf.newaxis, :], -1)

    def _check(self, matrix, z, channels):
        hidden, size = z.shape[-1], matrix.shape[-1]
        if len(z.shape) != 2 or len(matrix.shape) != 2 or size != hidden * channels:
            raise ValueError(
                "`network` must return a matrix (hidden, channels) for each state, flattened: "
                f"shape (batch, {hidden} * {channels}) for {hidden} entries of the state and "
                f"{channels} channels of the control. Received: {self.network!r}, which returns "
                f"shape {tuple(matrix.shape)} for shape {tuple(z.shape)}"
            )

    def compute_output_shape(self, t_shape, z_shape, control_shape):
        return z_shape

    def compute_output_spec(self, t, z, control):
        spec = keras.KerasTensor(z.shape, self.compute_dtype)
        self._check(self.network.compute_output_spec(spec), z, control.coefficients.shape[-1])
        return keras.KerasTensor(z.shape, z.dtype)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        network = keras.saving.deserialize_keras_object(config.pop("network"))
        return cls(network, **config)


@keras.saving.register_keras_serializable(package="tfsymadj")
@documented
class CDELayer(ODELayer):
    """A neural controlled differential equation: reads a series, observed at any times.

    The series, with its time as the first channel, is a path X, and the state z follows it: z(t0) =
    initial(X(t0)), dz = f(z) dX, with a matrix f(z). So the layer is a recurrent one whose state
    goes on continuously. It integrates over the number of the row, for which the path is made: the
    times may be any, and differ from example to example.

    Args:
        network: Keras layer from the state `(batch, hidden)` to `(batch, hidden * (1 + channels))`:
            see `ControlledDynamics`.
        initial: Keras layer from the first row of the path, `(batch, 1 + channels)`, to the first
            state `(batch, hidden)`.
        interpolation: `"hermite"`, the smoothest one, for adaptive steps; `"linear"`, at whose rows
            steps end; `"rectilinear"`, by which the states up to a row know nothing of later rows,
            as online predictions need: see `tfsymadj.controls`.
        return_sequences: whether the states at all rows are returned, or the last one only.
        track_stats: see `ODELayer`.
        **options: as in `tfsymadj.solve`, but for `jumps`; equal steps are counted from one row to
            the next one, with `rectilinear` in each half of the way.
        **kwargs: `name`, `dtype` and the like of `keras.Layer`.

    Call arguments:
        x: series `(batch, n, channels)`, n at least 2. NaN: not observed.
        t: the times of the rows, `(n,)` or `(batch, n)`; by default 0, 1, 2, ... Of the dtype of
            the state, and of the order of magnitude that suits a network. Rows may have the same
            time; but of `(batch, n)` the last one repeated fills up: those rows don't count.
        training: see `ODELayer`.
        mask: boolean `(batch, n)`, by default the one that Keras has attached to `x`: which rows
            count; the others come before them or after them. There the path stands still, and so
            does the state: the last one is that after the last row that counts.

    Output shape:
        `(batch, hidden)`; with `return_sequences` `(batch, n, hidden)`, with the mask of `x`.

    Raises:
        ValueError, TypeError: see `tfsymadj.solve`.

    Example:

    >>> import keras, tfsymadj
    >>> dense = [keras.layers.Dense(16, "relu"), keras.layers.Dense(8 * 3, "tanh")]
    >>> network = keras.Sequential(dense)
    >>> layer = tfsymadj.layers.CDELayer(network, keras.layers.Dense(8), rtol=1e-3, max_steps=64)
    >>> layer(keras.random.normal((4, 10, 2))).shape
    TensorShape([4, 8])

    Source: Kidger et al., arXiv:2005.08926; interpolations: Morrill et al., arXiv:2106.11028.
    """

    @with_options
    def __init__(
        self,
        network: keras.Layer,
        initial: keras.Layer,
        *,
        interpolation: str = "hermite",
        return_sequences: bool = False,
        track_stats: bool = False,
        **kwargs: Unpack[LayerOptions],
    ):
        if interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` must be one of {_INTERPOLATIONS}. Received: {interpolation!r}"
            )
        if kwargs.get("jumps") is not None:
            raise ValueError(
                "`jumps` are the rows of the series, which the layer knows; leave it out. "
                f"Received: {kwargs['jumps']!r}"
            )
        if not isinstance(initial, keras.Layer):
            raise TypeError(f"`initial` must be a Keras layer. Received: {initial!r}")
        super().__init__(
            ControlledDynamics(network, dtype=kwargs.get("dtype")),
            return_sequences=return_sequences,
            track_stats=track_stats,
            **kwargs,
        )
        self.initial = initial
        self.interpolation = interpolation
        self._adaptive = self.options.solver(np.zeros(2)).controller.adaptive

    @property
    def layers(self):
        """What `summary(expand_nested=True)` expands."""
        return [self.initial, self.dynamics]

    def build(self, x_shape):
        first = keras.KerasTensor((x_shape[0], x_shape[-1] + 1), self.compute_dtype)
        calling.build_layer(self.initial, first)
        if self._infer is None:  # not by a call
            x = keras.KerasTensor(x_shape, self._state_dtype)
            self._infer = functools.partial(self._inferred, x)
        super().build(x_shape)
        self._infer = None

    def _specs_of_call(self):
        self._infer()
        specs, self._solved_for = self._solved_for, None
        return specs

    def call(  # type: ignore[override]
        self, x: Any, t: Any = None, training: bool | None = None, mask: Any = None
    ) -> Any:
        if mask is None:
            mask = _platform.mask_of(x)
        x = tf.convert_to_tensor(x)
        if x.shape.rank != 3:
            raise ValueError(
                f"`x` must be of shape (batch, n, channels). Received: shape {tuple(x.shape)}"
            )
        rows = _rows(x)
        control = self._control(rows, self._cast(x, self._state_dtype), t, mask)
        z0 = self.initial(control(0.0))
        return super().call(
            z0,
            t=rows if self.return_sequences else _ends(rows),
            args=(control,),
            training=training,
            jumps=self._jumps(rows, control),
        )

    def _control(self, rows, x, t, mask):
        """The path `(batch, channels + 1)` over the number of the row."""
        t = tf.cast(rows if t is None else t, tf.float64)
        times = tf.broadcast_to(tf.cast(t, x.dtype)[..., tf.newaxis], tf.shape(x[..., :1]))
        x, online = tf.concat([times, x], -1), self.interpolation == "rectilinear"
        if mask is not None and online:  # zero before the first row that counts, if it were missing
            first = tf.argmax(tf.cast(mask, tf.int32), 1, output_type=tf.int32)
            index = tf.maximum(tf.range(tf.shape(x)[1]), first[:, tf.newaxis])
            x, mask = (tf.gather(y, index, batch_dims=1) for y in (x, mask))
        x = _only_where(mask, x)
        if online:
            return controls.rectilinear_path(rows, x, 1)
        make = controls.hermite if self.interpolation == "hermite" else controls.linear
        return make(rows, _only_where(mask, controls.filled(t, x)))

    def _jumps(self, rows, control):
        """The rows at which the derivative of the path jumps; with a mask that of `"hermite"` too,
        once, which adaptive steps can cope with.
        """
        if self.interpolation == "hermite" and self._adaptive:
            return None
        if isinstance(rows, np.ndarray):  # as numbers, of which no gradient is wanted
            return np.arange(0.0, len(rows), 0.5 if self.interpolation == "rectilinear" else 1.0)
        return control.knots

    def compute_mask(self, inputs, previous_mask):
        return previous_mask if self.return_sequences else None

    def get_config(self):
        config = super().get_config()
        for name in ("dynamics", "t", "jumps"):
            del config[name]
        return {
            **config,
            "network": keras.saving.serialize_keras_object(self.dynamics.network),
            "initial": keras.saving.serialize_keras_object(self.initial),
            "interpolation": self.interpolation,
        }


def _only_where(mask, x):
    """Rows `(batch, n, channels)` that count, and NaN in place of the others."""
    if mask is None:
        return x
    return tf.where(mask[..., tf.newaxis], x, tf.constant(float("nan"), x.dtype))


def _rows(x):
    """The numbers of the rows of `(batch, n, channels)`: float64, as an array if they are known."""
    if x.shape[1] is not None:
        return np.arange(float(x.shape[1]))
    return tf.range(tf.cast(tf.shape(x)[1], tf.float64))


def _ends(rows):
    return rows[[0, -1]] if isinstance(rows, np.ndarray) else tf.stack([rows[0], rows[-1]])

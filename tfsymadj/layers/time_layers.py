"""Layers for time-dependent dynamics, called as `layer(t, y)`."""

from typing import Any

import keras
import tensorflow as tf

from tfsymadj.dynamics import calling


def beside(t, y):
    """The time with the dtype and rank of a state `(batch, ...)`; one for all, or for each example.

    Args:
        t: tensor of one entry, or of one for each example: `()`, `(batch,)`, `(batch, 1)`.
        y: tensor `(batch, ...)`.

    Returns:
        Tensor `(1 or batch, 1, ..., 1)`.
    """
    return tf.reshape(tf.cast(t, y.dtype), [-1, *[1] * (y.shape.rank - 1)])


def _masked(layer, mask):
    """The keyword by which a layer gets the mask of a state, if it takes one."""
    return {"mask": mask} if mask is not None and calling.takes(layer, "mask") else {}


@keras.saving.register_keras_serializable(package="tfsymadj")
class ConcatTime(keras.Layer):
    """Appends the time to the last axis of its input, as a feature or a channel.

    Args:
        layer: Keras layer that is called on the longer input.

    Call arguments:
        t: the time, a scalar tensor, or `(batch,)` or `(batch, 1)` for times of each example.
        y: tensor `(batch, ..., channels)`.

    Output shape:
        That of `layer` for an input `(batch, ..., channels + 1)`.

    Example:

    >>> import keras, tfsymadj
    >>> dynamics = tfsymadj.layers.ConcatTime(keras.layers.Dense(4))
    >>> tfsymadj.ODELayer(dynamics)(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])
    """

    def __init__(self, layer: keras.Layer, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.layer = layer

    @property
    def layers(self):
        """What `summary(expand_nested=True)` expands."""
        return [self.layer]

    def build(self, t_shape, y_shape):
        calling.build_layer(self.layer, self._longer(y_shape, self.compute_dtype))

    def _longer(self, shape, dtype):
        return keras.KerasTensor((*shape[:-1], shape[-1] + 1), dtype)

    def call(self, t, y, mask=None):
        column = beside(t, y) * tf.ones_like(y[..., :1])
        return self.layer(tf.concat([y, column], -1), **_masked(self.layer, mask))

    def compute_output_shape(self, t_shape, y_shape):
        return self.layer.compute_output_spec(self._longer(y_shape, self.compute_dtype)).shape

    def compute_output_spec(self, t, y, mask=None):
        return self.layer.compute_output_spec(self._longer(y.shape, y.dtype))

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


@keras.saving.register_keras_serializable(package="tfsymadj")
class ConcatSquash(keras.Layer):
    """A dense layer whose output is gated and shifted by functions of the time.

    `activation((y W + b) * sigmoid(t v + c) + t u)`, the layer of FFJORD (Grathwohl et al.,
    arXiv:1810.01367).

    Args:
        units: size of the output's last axis.
        activation: name of an activation, or a callable; None: linear.

    Call arguments:
        t: the time, a scalar tensor, or `(batch,)` or `(batch, 1)` for times of each example.
        y: tensor `(batch, ..., channels)`.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if `units` is not a positive integer.

    Example:

    >>> import keras, tfsymadj
    >>> layers = [tfsymadj.layers.ConcatSquash(8, "tanh"), tfsymadj.layers.ConcatSquash(2)]
    >>> dynamics = tfsymadj.layers.TimeSequential(layers)
    >>> tfsymadj.ODELayer(dynamics)(keras.ops.ones((3, 2))).shape
    TensorShape([3, 2])
    """

    def __init__(self, units: int, activation: Any = None, **kwargs):
        super().__init__(**kwargs)
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise ValueError(f"`units` must be a positive integer. Received: {units!r}")
        self.units = units
        self.activation = keras.activations.get(activation)

    def build(self, t_shape, y_shape):
        self.kernel = self.add_weight((y_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), "zeros", name="bias")
        self.gate_kernel = self.add_weight((1, self.units), name="gate_kernel")
        self.gate_bias = self.add_weight((self.units,), "zeros", name="gate_bias")
        self.shift_kernel = self.add_weight((1, self.units), name="shift_kernel")

    def call(self, t, y):
        t = beside(t, y)
        gate = tf.sigmoid(t * self.gate_kernel[0] + self.gate_bias)
        shift = t * self.shift_kernel[0]
        outputs = keras.ops.matmul(y, self.kernel) + self.bias
        return self.activation(outputs * gate + shift)

    def compute_output_shape(self, t_shape, y_shape):
        return (*y_shape[:-1], self.units)

    def compute_output_spec(self, t, y):
        return keras.KerasTensor(self.compute_output_shape((), y.shape), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
        }


@keras.saving.register_keras_serializable(package="tfsymadj")
class TimeSequential(keras.Layer):
    """A chain of layers that are all called as `(t, y)`.

    Args:
        layers: list of such layers.

    Call arguments:
        t: the time, a scalar tensor, or `(batch,)` or `(batch, 1)` for times of each example.
        y: tensor.

    Output shape:
        That of the last layer.

    Raises:
        ValueError: if there is no layer.

    Example: see `ConcatSquash`.
    """

    def __init__(self, layers: list, **kwargs):
        super().__init__(**kwargs)
        if not layers:
            raise ValueError(f"`layers` must hold at least one layer. Received: {layers!r}")
        self.supports_masking = True
        self.layers = list(layers)

    def build(self, t_shape, y_shape):
        t, y = self._specs(t_shape, y_shape)
        for layer in self.layers:
            calling.build_layer(layer, t, y)
            y = layer.compute_output_spec(t, y)

    def _specs(self, *shapes):
        return [keras.KerasTensor(shape, self.compute_dtype) for shape in shapes]

    def call(self, t, y, mask=None):
        for layer in self.layers:
            y = layer(t, y, **_masked(layer, mask))
        return tf.cast(y, self.compute_dtype)  # the layers have dtypes of their own

    def compute_output_shape(self, t_shape, y_shape):
        return self.compute_output_spec(*self._specs(t_shape, y_shape)).shape

    def compute_output_spec(self, t, y, mask=None):
        for layer in self.layers:
            y = layer.compute_output_spec(t, y)
        return keras.KerasTensor(y.shape, self.compute_dtype)

    def get_config(self):
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config.pop("layers")]
        return cls(layers, **config)


@keras.saving.register_keras_serializable(package="tfsymadj")
class RescaledTime(keras.Layer):
    """Dynamics whose time runs at a pace of its own for each example.

    A solve over s from 0 to 1 takes an example from its time `start` to `start + duration`:
    dy/ds = duration f(start + s duration, y). The batch shares the steps in s. Where the duration
    is zero, as in a padded entry of a sequence, the state stays what it is, exactly.

    Args:
        dynamics: layer or callable `(t, y)` or `(y)`, as in `tfsymadj.solve`.
        autonomous: as in `tfsymadj.solve`.

    Call arguments:
        s: scalar in [0, 1].
        y: tensor `(batch, ...)`, or a nest of such tensors.
        duration: `(batch,)` or `(batch, 1)`, of either sign. Gradients reach it.
        start: likewise; None: zero.

    The dynamics are called with times `(batch, 1, ..., 1)` of the rank of the state.

    Output shape:
        That of `y`.

    Example:

    >>> import keras, tensorflow as tf, tfsymadj
    >>> dynamics = tfsymadj.layers.RescaledTime(keras.layers.Dense(4, "tanh"))
    >>> layer = tfsymadj.ODELayer(dynamics, t=(0.0, 1.0))
    >>> layer(tf.ones([3, 4]), args=tf.constant([0.0, 0.5, 2.0])).shape
    TensorShape([3, 4])

    Source: Chen, Amos, Nickel: Neural Spatio-Temporal Point Processes, arXiv:2011.04583, where
    batches of unequal intervals are integrated so.
    """

    def __init__(self, dynamics: keras.Layer, autonomous: bool | None = None, **kwargs):
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        if not callable(dynamics):
            raise TypeError(f"`dynamics` must be callable. Received: {dynamics!r}")
        self.supports_masking = True
        self.dynamics = dynamics
        self.autonomous = autonomous

    @property
    def layers(self):
        """The dynamics, if Keras knows them: what `summary(expand_nested=True)` expands."""
        return [self.dynamics] if isinstance(self.dynamics, keras.Layer) else []

    def build(self, s_shape, y_shape, duration_shape=None, start_shape=None):
        y = keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, self.compute_dtype), y_shape
        )
        calling.build(self.dynamics, y, (), self._is_autonomous(y))

    def call(self, s, y, duration, start=None, mask=None):
        like = tf.nest.flatten(y)[0]
        duration = beside(duration, like)
        t = beside(s, like) * duration
        if start is not None:
            t = t + beside(start, like)
        keywords = _masked(self.dynamics, mask)
        slopes = calling.call(self.dynamics, t, y, (), self._is_autonomous(y), **keywords)
        return tf.nest.map_structure(lambda k: beside(duration, k) * k, slopes)

    def _is_autonomous(self, y):
        return calling.is_autonomous(self.dynamics, (), self.autonomous, y)

    def compute_output_shape(self, s_shape, y_shape, duration_shape=None, start_shape=None):
        return y_shape

    def compute_output_spec(self, s, y, duration, start=None, mask=None):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), y)

    def get_config(self):
        dynamics = keras.saving.serialize_keras_object(self.dynamics)
        return {**super().get_config(), "dynamics": dynamics, "autonomous": self.autonomous}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        dynamics = keras.saving.deserialize_keras_object(config.pop("dynamics"))
        return cls(dynamics, **config)

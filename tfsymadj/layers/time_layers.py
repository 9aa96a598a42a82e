"""Layers for time-dependent dynamics, called as `layer(t, y)` with a scalar t."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tfsymadj")
class ConcatTime(keras.Layer):
    """Appends the time to the last axis of its input, as a feature or a channel.

    Args:
        layer: Keras layer that is called on the longer input.

    Call arguments:
        t: scalar, the time.
        y: tensor `(batch, ..., channels)`.

    Output shape:
        That of `layer` for an input `(batch, ..., channels + 1)`.

    Example:

    >>> import keras, tfsymadj
    >>> dynamics = tfsymadj.layers.ConcatTime(keras.layers.Dense(4))
    >>> tfsymadj.ODELayer(dynamics)(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, t_shape, y_shape):
        if not self.layer.built:
            self.layer.build((*y_shape[:-1], y_shape[-1] + 1))

    def call(self, t, y):
        column = tf.cast(t, y.dtype) * tf.ones_like(y[..., :1])
        return self.layer(tf.concat([y, column], -1))

    def compute_output_shape(self, t_shape, y_shape):
        return self.layer.compute_output_shape((*y_shape[:-1], y_shape[-1] + 1))

    def compute_output_spec(self, t, y):
        longer = keras.KerasTensor((*y.shape[:-1], y.shape[-1] + 1), y.dtype)
        return self.layer.compute_output_spec(longer)

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
        t: scalar, the time.
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

    def __init__(self, units, activation=None, **kwargs):
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
        t = tf.reshape(tf.cast(t, y.dtype), [1, 1])
        gate = tf.sigmoid(tf.matmul(t, self.gate_kernel) + self.gate_bias)[0]
        shift = tf.matmul(t, self.shift_kernel)[0]
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
        t: scalar, the time.
        y: tensor.

    Output shape:
        That of the last layer.

    Raises:
        ValueError: if there is no layer.

    Example: see `ConcatSquash`.
    """

    def __init__(self, layers, **kwargs):
        super().__init__(**kwargs)
        if not layers:
            raise ValueError(f"`layers` must hold at least one layer. Received: {layers!r}")
        self.layers = list(layers)

    def build(self, t_shape, y_shape):
        for layer in self.layers:
            if not layer.built:
                layer.build(t_shape, y_shape)
                layer.built = True
            y_shape = layer.compute_output_shape(t_shape, y_shape)

    def call(self, t, y):
        for layer in self.layers:
            y = layer(t, y)
        return y

    def compute_output_shape(self, t_shape, y_shape):
        for layer in self.layers:
            y_shape = layer.compute_output_shape(t_shape, y_shape)
        return y_shape

    def compute_output_spec(self, t, y):
        return keras.KerasTensor(self.compute_output_shape(t.shape, y.shape), self.compute_dtype)

    def get_config(self):
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config.pop("layers")]
        return cls(layers, **config)

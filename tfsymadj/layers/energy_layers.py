"""Layers for dynamics that are made of an energy: du/dt = G grad H(u).

G skew-symmetric keeps H, G negative semi-definite lets it decay, whatever H is. Greydanus, Dzamba,
Yosinski: Hamiltonian Neural Networks, arXiv:1906.01563; for partial differential equations
Matsubara, Ishikawa, Yaguchi: Deep Energy-based Modeling of Discrete-Time Physics, arXiv:1905.08604.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfsymadj.dynamics import calling


@keras.saving.register_keras_serializable(package="tfsymadj")
class PeriodicDifference:
    """A central difference on a periodic grid, along axis 1 of `(batch, points)` or more axes.

    Args:
        derivative: its order. 0: the identity; 1: (v[i+1] - v[i-1]) / 2 d, skew-symmetric; 2:
            (v[i+1] - 2 v[i] + v[i-1]) / d^2, negative semi-definite.
        spacing: d, the distance of two points.
        factor: what the difference is multiplied by.

    Raises:
        ValueError: for another derivative, a spacing that is not positive, and a factor of the sign
            with which an energy would grow: negative for 2, positive for 0.

    Example:

    >>> import numpy as np, tfsymadj
    >>> difference = tfsymadj.layers.PeriodicDifference(1, spacing=0.1)
    >>> difference(np.arange(4.0)[None]).numpy().round(6).tolist()
    [[-10.0, 10.0, 10.0, -10.0]]
    """

    def __init__(self, derivative: int, spacing: float = 1.0, factor: float = 1.0):
        if derivative not in (0, 1, 2):
            raise ValueError(f"`derivative` must be 0, 1 or 2. Received: {derivative!r}")
        if not spacing > 0:
            raise ValueError(f"`spacing` must be positive. Received: {spacing!r}")
        if (1 - derivative) * factor > 0:
            sign = "negative" if derivative == 0 else "positive"
            raise ValueError(
                f"`factor` must not be other than {sign} for derivative={derivative}, or energies "
                f"would grow. Received: {factor!r}"
            )
        self.derivative = derivative
        self.spacing = float(spacing)
        self.factor = float(factor)

    def __call__(self, v):
        v = tf.convert_to_tensor(v)
        if self.derivative == 0:
            return self.factor * v
        after, before = tf.roll(v, -1, 1), tf.roll(v, 1, 1)
        if self.derivative == 1:
            return self.factor / (2.0 * self.spacing) * (after - before)
        return self.factor / self.spacing**2 * (after - 2.0 * v + before)

    def get_config(self):
        return {"derivative": self.derivative, "spacing": self.spacing, "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


class _Energy(keras.Layer):
    """What the dynamics of an energy have in common."""

    def __init__(self, energy: keras.Layer, **kwargs):
        super().__init__(**kwargs)
        if not callable(energy):
            raise TypeError(f"`energy` must be a layer or a callable. Received: {energy!r}")
        self.energy = energy

    def _total(self, y):
        """Energies `(batch,)`: the sum of all that the network returns for an example."""
        value = self.energy(y)
        return tf.reduce_sum(value, axis=list(range(1, value.shape.rank)))

    def _gradient(self, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(y)
            total = tf.reduce_sum(self._total(y))
        return tape.gradient(total, y, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    @property
    def layers(self):
        """The energy, if Keras knows it: what `summary(expand_nested=True)` expands."""
        return [self.energy] if isinstance(self.energy, keras.Layer) else []

    def _build_energy(self, shape):
        calling.build_layer(self.energy, keras.KerasTensor(shape, self.compute_dtype))

    def get_config(self):
        return {**super().get_config(), "energy": keras.saving.serialize_keras_object(self.energy)}

    @classmethod
    def from_config(cls, config):
        config = {
            name: keras.saving.deserialize_keras_object(value)
            if isinstance(value, dict) and name != "dtype"
            else value
            for name, value in config.items()
        }
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfsymadj")
class EnergyDynamics(_Energy):
    """du/dt = G grad H(u): H decays along solutions, or stays, whatever the network has learned.

    Args:
        energy: layer or callable from `(batch, ...)` to `(batch, ...)`; its outputs for an example
            are summed to H. On a grid let it return an energy density at each point: the gradient
            of the sum is then the variational derivative.
        G: the operator: a `PeriodicDifference`, any linear callable of a gradient, or a square
            matrix for the last axis, skew-symmetric (conservative) or with a negative semi-definite
            symmetric part (dissipative).

    Call arguments:
        u: tensor `(batch, ...)`.

    Output shape:
        That of `u`.

    Raises:
        ValueError: for a matrix with which energies could grow. Of a callable of one's own nothing
            is checked.

    Example:

    >>> import keras, tensorflow as tf, tfsymadj
    >>> energy = keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
    >>> damped = tfsymadj.layers.EnergyDynamics(energy, G=[[0.0, 1.0], [-1.0, -0.1]])
    >>> tfsymadj.ODELayer(damped)(tf.ones([3, 2])).shape
    TensorShape([3, 2])
    """

    def __init__(self, energy: keras.Layer, G: Any, **kwargs):
        super().__init__(energy, **kwargs)
        self.G = G if callable(G) else _checked(G)

    def build(self, u_shape):
        self._build_energy(u_shape)

    def call(self, u: tf.Tensor) -> tf.Tensor:
        gradient = self._gradient(u)
        if callable(self.G):
            return self.G(gradient)
        return tf.linalg.matvec(tf.cast(self.G, gradient.dtype), gradient)

    def energy_of(self, u: tf.Tensor) -> tf.Tensor:
        """H of each example, `(batch,)`."""
        return self._total(tf.convert_to_tensor(u))

    def compute_output_shape(self, u_shape):
        return u_shape

    def compute_output_spec(self, u):
        return keras.KerasTensor(u.shape, self.compute_dtype)

    def get_config(self):
        operator = self.G if not callable(self.G) else keras.saving.serialize_keras_object(self.G)
        if isinstance(operator, np.ndarray):
            operator = operator.tolist()
        return {**super().get_config(), "G": operator}


@keras.saving.register_keras_serializable(package="tfsymadj")
class HamiltonianDynamics(_Energy):
    """Hamilton's equations, dq/dt = dH/dp and dp/dt = -dH/dq, of a learned energy H(q, p).

    Args:
        energy: layer or callable from `(batch, 2 n)`, q and p side by side, to `(batch, ...)`; its
            outputs for an example are summed to H.

    Call arguments:
        y: `(batch, 2 n)`, or a pair of tensors `(q, p)`, each `(batch, n)`.

    Output shape:
        That of `y`.

    Raises:
        ValueError: if the last axis can't be halved.

    Example:

    >>> import keras, tensorflow as tf, tfsymadj
    >>> energy = keras.Sequential([keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)])
    >>> layer = tfsymadj.ODELayer(tfsymadj.layers.HamiltonianDynamics(energy), t=(0.0, 5.0))
    >>> layer(tf.ones([3, 2])).shape
    TensorShape([3, 2])
    """

    def build(self, y_shape):
        if y_shape and isinstance(y_shape[0], (tuple, list)):
            (batch, n), _ = y_shape
            y_shape = (batch, 2 * n)
        if y_shape[-1] % 2:
            raise ValueError(f"`y` must hold q and p, of equal sizes. Received: shape {y_shape}")
        self._build_energy(y_shape)

    def call(self, y: tf.Tensor) -> tf.Tensor:
        pair = isinstance(y, (tuple, list))
        gradient = self._gradient(tf.concat(y, -1) if pair else y)
        dq, dp = tf.split(gradient, 2, axis=-1)
        return type(y)([dp, -dq]) if pair else tf.concat([dp, -dq], -1)

    def energy_of(self, y: tf.Tensor) -> tf.Tensor:
        """H of each example, `(batch,)`."""
        return self._total(tf.concat(y, -1) if isinstance(y, (tuple, list)) else y)

    def compute_output_shape(self, y_shape):
        return y_shape

    def compute_output_spec(self, y):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, self.compute_dtype), y)


@keras.saving.register_keras_serializable(package="tfsymadj")
class SecondOrderDynamics(keras.Layer):
    """Second-order dynamics as a system: dq/dt = v, dv/dt = acceleration(q, v).

    Args:
        acceleration: layer or callable from `(batch, 2 n)`, q and v side by side, to `(batch, n)`.

    Call arguments:
        y: `(batch, 2 n)`, or a pair of tensors `(q, v)`, each `(batch, n)`: with one, and an
            acceleration that depends on q alone, `stormer_verlet` and `yoshida4` can be taken.

    Output shape:
        That of `y`.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> oscillator = tfsymadj.layers.SecondOrderDynamics(lambda y: -y[:, :1])
    >>> layer = tfsymadj.ODELayer(oscillator, t=(0.0, 3.14159265), rtol=1e-6, atol=1e-8)
    >>> bool(tf.reduce_all(tf.abs(layer(tf.constant([[1.0, 0.0]])) - [[-1.0, 0.0]]) < 1e-5))
    True
    """

    def __init__(self, acceleration: keras.Layer, **kwargs):
        super().__init__(**kwargs)
        if not callable(acceleration):
            raise TypeError(
                f"`acceleration` must be a layer or a callable. Received: {acceleration!r}"
            )
        self.acceleration = acceleration

    @property
    def layers(self):
        """The acceleration, if Keras knows it: what `summary(expand_nested=True)` expands."""
        return [self.acceleration] if isinstance(self.acceleration, keras.Layer) else []

    def build(self, y_shape):
        if y_shape and isinstance(y_shape[0], (tuple, list)):
            (batch, n), _ = y_shape
            y_shape = (batch, 2 * n)
        if y_shape[-1] % 2:
            raise ValueError(f"`y` must hold q and v, of equal sizes. Received: shape {y_shape}")
        calling.build_layer(self.acceleration, keras.KerasTensor(y_shape, self.compute_dtype))

    def call(self, y: tf.Tensor) -> tf.Tensor:
        if isinstance(y, (tuple, list)):
            q, velocity = y
            found = tf.cast(self.acceleration(tf.concat([q, velocity], -1)), velocity.dtype)
            return type(y)([velocity, found])
        velocity = y[..., y.shape[-1] // 2 :]
        return tf.concat([velocity, tf.cast(self.acceleration(y), y.dtype)], -1)

    def compute_output_shape(self, y_shape):
        return y_shape

    def compute_output_spec(self, y):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, self.compute_dtype), y)

    def get_config(self):
        acceleration = keras.saving.serialize_keras_object(self.acceleration)
        return {**super().get_config(), "acceleration": acceleration}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        acceleration = keras.saving.deserialize_keras_object(config.pop("acceleration"))
        return cls(acceleration, **config)


def _checked(matrix):
    """A square matrix with which no energy grows, float64."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`G` must be a square matrix or a callable. Received: {matrix!r}")
    largest = np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
    if largest > 1e-12 * np.linalg.norm(matrix):
        raise ValueError(
            "`G` must be skew-symmetric or have a negative semi-definite symmetric part, or "
            f"energies would grow. Received: an eigenvalue of {largest:g}"
        )
    return matrix

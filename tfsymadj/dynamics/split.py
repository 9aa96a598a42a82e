"""Dynamics in two parts, of which one is stiff."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsymadj.config import deserialized
from tfsymadj.dynamics.operators import Linear


class Split:
    """Dynamics dy/dt = explicit(t, y) + implicit(t, y), for methods that treat the two differently.

    An additive Runge-Kutta method (IMEX), such as `"kencarp4"`, solves equations for the implicit
    part only: it is the one to be stiff, and simple. Any other method solves the sum.

    Args:
        explicit: the part that is not stiff, a callable as in `solve`: a network, say.
        implicit: the stiff part, likewise; or a constant `tf.linalg.LinearOperator` L that stands
            for L y, or a nest of them like `y0`, with None for zero: its equations are solved by
            its own algebra, of circulant operators (by FFT), diagonal and tridiagonal ones, whether
            or not they are multiplied by a `LinearOperatorScaledIdentity`; others are inverted as
            matrices once a step. L acts on the last axes of its tensor that have as many entries
            together as it has columns. Gradients reach its parameters.

    Raises:
        TypeError: if a part is neither.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> dynamics = tfsymadj.Split(lambda t, y: tf.cos(y), lambda t, y: -1e4 * y)
    >>> y = tfsymadj.odeint(dynamics, [1.0], [0.0, 1.0], method="kencarp4")
    >>> abs(float(y[-1, 0]) - 1e-4) < 1e-5
    True

    Source: Ascher, Ruuth, Spiteri, Applied Numerical Mathematics 25 (1997), 151-167; Kennedy,
    Carpenter, Applied Numerical Mathematics 44 (2003), 139-181.
    """

    def __init__(self, explicit: Callable, implicit: Callable):
        if not callable(explicit):
            raise TypeError(f"`explicit` must be callable. Received: {explicit!r}")
        self.explicit = explicit
        self.implicit = implicit if callable(implicit) else Linear(implicit)

    @property
    def parts(self) -> tuple:
        """Both of them, the implicit one first."""
        return self.implicit, self.explicit

    @property
    def built(self) -> bool:
        """Whether all weights of Keras layers are there."""
        return all(getattr(part, "built", True) for part in self.parts)

    def get_config(self) -> dict:
        """The constructor's arguments, a dict."""
        return {"explicit": self.explicit, "implicit": self.implicit}

    @classmethod
    def from_config(cls, config: dict) -> "Split":
        """The object of a config, also of one that was serialized."""
        return cls(**{name: deserialized(value) for name, value in config.items()})

    def __repr__(self):
        return f"Split(explicit={self.explicit!r}, implicit={self.implicit!r})"

    def __call__(self, t: Any, y: Any, *args: Any) -> Any:
        """The sum of both, called as functions `(t, y, *args)`."""
        parts = (part(t, y, *args) for part in self.parts)
        return tf.nest.map_structure(tf.add, *parts)

"""This package's solver and gradient for `tfb.FFJORD`."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp
from typing_extensions import Unpack

from tfsymadj._platform import bijectors
from tfsymadj.bijectors.freshness import FreshCache
from tfsymadj.options import Options, SolverOptions, documented, with_options
from tfsymadj.solve import solve_with


class _Results(NamedTuple):
    """What TensorFlow Probability expects of a solver.

    Attributes:
        times: the solution times.
        states: the states at these times, along a new leading axis.
    """

    times: tf.Tensor
    states: tf.Tensor


@documented
@with_options
def ode_solve_fn(**options: Unpack[SolverOptions]) -> Callable:
    """A solver with the signature that `tfb.FFJORD(ode_solve_fn=...)` takes.

    Args:
        **options: those of `tfsymadj.solve`, such as `method`, `rtol`, `atol`, `gradient`.

    Returns:
        Callable `(ode_fn, initial_time, initial_state, solution_times, constants=None)` that
        returns an object with `times` and `states`. An eager call makes a new trace each time,
        as `tfb.FFJORD` makes new functions each time; `CNF` does not.

    Example:

    >>> import tensorflow as tf, tensorflow_probability as tfp
    >>> from tfsymadj.bijectors import ode_solve_fn
    >>> flow = tfp.bijectors.FFJORD(lambda t, y: -y, ode_solve_fn=ode_solve_fn(rtol=1e-5))
    >>> flow.forward(tf.ones([2, 3])).shape
    TensorShape([2, 3])
    """

    return _Solver(Options.of("ode_solve_fn", options))


class _Solver:
    def __init__(self, options):
        self._options = options

    def __call__(self, ode_fn, initial_time, initial_state, solution_times, constants=None):
        constants = constants or {}
        start = tf.reshape(tf.cast(initial_time, tf.float64), [1])
        times = tf.concat([start, tf.cast(tf.stack(solution_times), tf.float64)], 0)

        def dynamics(t, y):
            return ode_fn(t, y, **constants)

        states = solve_with(dynamics, initial_state, times, (), self._options).y
        return _Results(times[1:], tf.nest.map_structure(lambda y: y[1:], states))


def _is_ours(ffjord):
    return isinstance(ffjord.parameters["ode_solve_fn"], _Solver)


bijectors.replace_cache(
    tfp.bijectors.FFJORD, FreshCache("_augmented_forward", "_augmented_inverse"), _is_ours
)

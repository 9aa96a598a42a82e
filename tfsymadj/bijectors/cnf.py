"""Continuous normalizing flows as a bijector of TensorFlow Probability."""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from typing_extensions import Unpack

from tfsymadj import _platform
from tfsymadj._platform import copies
from tfsymadj.bijectors.freshness import FreshCache
from tfsymadj.bijectors.seeds import as_seed_pair
from tfsymadj.bijectors.traces import Field, Trace, get_trace
from tfsymadj.dynamics import calling, contents
from tfsymadj.options import Options, SolverOptions, documented, with_options
from tfsymadj.solution import Stats
from tfsymadj.solve import check, solve_with

copies.register()

_REGULARIZERS = ("kinetic_energy", "jacobian_norm")

_UNCOPYABLE = (
    "`dynamics` that are a function can't be copied or pickled with the variables that they read: "
    "a copy of the function would use the same ones. Make them a Keras layer or a `tf.Module` that "
    "has the variables as attributes."
)


class FlowSolution(NamedTuple):
    """All that one solve of a flow gives.

    Attributes:
        y: where the flow leads to, like its input.
        log_det_jacobian: of this direction; shape `batch_shape`.
        kinetic_energy: the integral of |dy/dt|^2 over time, or None; shape `batch_shape`.
        jacobian_norm: the integral of the squared Frobenius norm of the Jacobian of the dynamics,
            or None; likewise. With an estimated trace an unbiased estimate by the same products.
        status: `Status`, int32 scalar, or a vector with `batch_axis`.
        stats: `Stats`.
    """

    y: tf.Tensor
    log_det_jacobian: tf.Tensor
    kinetic_energy: Any
    jacobian_norm: Any
    status: tf.Tensor
    stats: Stats


@documented
class CNF(tfp.bijectors.Bijector):
    """The flow of an ODE: forward(x) = y(t[1]), where dy/dt = dynamics(t, y), y(t[0]) = x.

    The inverse is the same field run the other way. One solve gives the value and the logarithm of
    the Jacobian's determinant, the integral of the divergence of the dynamics; its gradient is that
    of `gradient`, by default exact at little memory.

    Args:
        dynamics: callable `(t, y, *condition) -> dy/dt`, as in `tfsymadj.solve`. `y` has one batch
            axis, whatever the batch shape of the input; samples must not depend on each other. A
            Keras layer must have its weights already, and what is frozen only later stays in
            `trainable_variables`. Dynamics with a method `divergence`: see `ExactTrace`.
        t: two different times, in either order.
        trace: `"exact"`, `"hutchinson"`, `"hutch++"`, or an object: `ExactTrace()`,
            `HutchinsonTrace(noise, num_samples)`, `HutchPlusPlusTrace(num_samples)`.
        seed: of the noise of an estimated trace, an int or an integer tensor of shape `()` or
            `(2,)`. None stands for 0: the noise is always a function of the seed and the shape of
            the input, the same in each call, in both directions, in graphs and under XLA.
        event_ndims: the number of axes of an event.
        regularizers: of `"kinetic_energy"` and `"jacobian_norm"`: those that are integrated along
            with the state, see `FlowSolution` (Finlay et al., arXiv:2002.02798).
        validate_args: as in `tfb.Bijector`.
        name: name of the bijector, by which chains hand over keywords.
        **options: as in `tfsymadj.solve`.

    Keywords of `forward`, `inverse` and the log-det-Jacobians:
        condition: nest of tensors, further arguments of the dynamics; gradients reach them. Their
            leading axes are the batch shape of the input; scalars are shared.
        seed: in place of the bijector's own, such as the number of the training step.

    Raises:
        ValueError, TypeError: for arguments that don't fit, naming the argument.

    Example:

    >>> import tensorflow as tf, tensorflow_probability as tfp
    >>> from tfsymadj.bijectors import CNF
    >>> flow = CNF(lambda t, y: -y, rtol=1e-6, atol=1e-6)
    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0])
    >>> tfp.distributions.TransformedDistribution(base, flow).log_prob([[0.1, 0.2]]).shape
    TensorShape([1])

    Source: Chen et al., arXiv:1806.07366, section 4; Grathwohl et al., FFJORD, arXiv:1810.01367.
    """

    _cache = FreshCache("_solved_forward", "_solved_inverse")

    @with_options
    def __init__(
        self,
        dynamics: Callable,
        t: Any = (0.0, 1.0),
        *,
        trace: str | Trace = "exact",
        seed: Any = None,
        event_ndims: int = 1,
        regularizers: Sequence[str] = (),
        validate_args: bool = False,
        name: str = "cnf",
        **options: Unpack[SolverOptions],
    ):
        parameters = {
            "dynamics": dynamics, "t": t, "trace": trace, "seed": seed, "event_ndims": event_ndims,
            "regularizers": regularizers, "validate_args": validate_args, "name": name, **options,
        }  # fmt: skip
        solved_by = Options.of("CNF", options)
        t = t.value if isinstance(t, keras.Variable) else t
        check(dynamics, t, solved_by)
        if solved_by.mass is not None:
            raise ValueError(
                "`mass` is no option of `CNF`: solve for dx/dt in the dynamics. "
                f"Received: mass={solved_by.mass!r}"
            )
        if (t.shape[0] if hasattr(t, "shape") else len(t)) != 2:
            raise ValueError(f"`t` must have two entries. Received: {t!r}")
        if isinstance(event_ndims, bool) or not isinstance(event_ndims, int) or event_ndims < 1:
            raise ValueError(f"`event_ndims` must be a positive int. Received: {event_ndims!r}")
        if isinstance(regularizers, str) or not set(regularizers) <= set(_REGULARIZERS):
            raise ValueError(
                f"`regularizers` must be a sequence out of {_REGULARIZERS}. "
                f"Received: {regularizers!r}"
            )
        as_seed_pair(0 if seed is None else seed)
        contents.refuse_unbuilt(dynamics)
        super().__init__(
            forward_min_event_ndims=event_ndims,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )
        self._t = t
        self._seed = 0 if seed is None else seed
        self._options = self._no_dependency(solved_by)
        self._dynamics = dynamics
        # Keras layers don't hand their variables to a `tf.Module` that holds them.
        self._weights, _ = contents.variables(dynamics)
        self._field = self._no_dependency(
            _Augmented(dynamics, solved_by.autonomous, get_trace(trace), tuple(regularizers))
        )

    __eq__, __hash__ = object.__eq__, object.__hash__  # not by its parameters, which may change

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        copied = type(self)._rebuild(*copy.deepcopy(self._parts(), memo))
        shared = _storages(self).keys() & _storages(copied).keys()
        if shared:
            names = ", ".join(_storages(self)[key].name for key in shared)
            raise TypeError(f"{_UNCOPYABLE} Received: variables {names} of {self._dynamics!r}")
        return copied

    def __reduce__(self):
        function = self._dynamics
        while isinstance(function, functools.partial):
            function = function.func
        function = getattr(function, "python_function", function)
        if inspect.isfunction(function) and self._weights:
            names = ", ".join(v.name for v in self._weights)
            raise TypeError(f"{_UNCOPYABLE} Received: variables {names} of {self._dynamics!r}")
        return type(self)._rebuild, self._parts()

    def _parts(self):
        """What a copy is made of: the constructor's arguments, not what was computed."""
        if type(self).__init__ is not CNF.__init__:
            raise TypeError(
                "A subclass of `CNF` with a constructor of its own must say how it is copied: give "
                f"it a method `__reduce__`. Received: {type(self).__name__}"
            )
        return (dict(self.parameters),)

    @classmethod
    def _rebuild(cls, parameters):
        return cls(**parameters)

    @classmethod
    def _parameter_properties(cls, dtype):
        return {}

    def forward_solution(
        self, x: tf.Tensor, *, condition: Any = None, seed: Any = None
    ) -> FlowSolution:
        """The flow forward, with all that the solve gives.

        It does not cost a solve if the same tensor was transformed before.

        Args:
            x: tensor `(*batch_shape, *event_shape)`.
            condition: see `CNF`.
            seed: see `CNF`.

        Returns:
            `FlowSolution`.
        """
        return self._solution(x, False, condition, seed)

    def inverse_solution(
        self, y: tf.Tensor, *, condition: Any = None, seed: Any = None
    ) -> FlowSolution:
        """The flow backward, likewise: `y` is what `forward` returns."""
        return self._solution(y, True, condition, seed)

    def _solution(self, x, inverse, condition, seed):
        x = tf.convert_to_tensor(x)
        given = {"condition": condition, "seed": seed}
        keywords = {name: value for name, value in given.items() if value is not None}
        y = self.inverse(x, **keywords) if inverse else self.forward(x, **keywords)
        attributes = self._cache.inverse_attributes if inverse else self._cache.forward_attributes
        known = attributes(x, **keywords).get("inverse" if inverse else "forward")
        if known is None:  # `y` was known because `x` was computed from it
            return self._integrate(x, inverse, **keywords)
        return known._replace(y=y)

    def _solved(self, x, inverse, keywords):
        """The value, and what else a solve gives, for `FreshCache`."""
        solution = self._integrate(x, inverse, **keywords)
        log_det = solution.log_det_jacobian
        # Not the end point: a cache must not keep alive what it refers to weakly.
        known = {"inverse" if inverse else "forward": solution._replace(y=None)}
        return solution.y, {"ildj": log_det if inverse else -log_det, **known}

    def _solved_forward(self, x, **keywords):
        return self._solved(x, False, keywords)

    def _solved_inverse(self, y, **keywords):
        return self._solved(y, True, keywords)

    def _forward(self, x, **keywords):
        return self._cache.forward(x, **keywords)

    def _inverse(self, y, **keywords):
        return self._cache.inverse(y, **keywords)

    def _inverse_log_det_jacobian(self, y, **keywords):
        return self._cache.inverse_attributes(y, **keywords)["ildj"]

    def _integrate(self, x, inverse, condition=None, seed=None):
        """One solve, as `FlowSolution`."""
        ndims = self.forward_min_event_ndims
        if x.shape.rank is None or x.shape.rank < ndims:
            raise ValueError(
                f"The input must have at least {ndims} axes, `event_ndims`. "
                f"Received: shape {x.shape}"
            )
        batch = x.shape.rank - ndims
        field, options = self._field, self._options
        y, conditions = _one_batch_axis(x, batch), _conditions(condition, x, batch)
        state = {"y": y} | {
            part: tf.ensure_shape(tf.zeros(tf.shape(y)[:1], y.dtype), y.shape[:1])
            for part in ("log_det", *field.regularizers)
        }
        seed = as_seed_pair(self._seed if seed is None else seed)
        noise = field.trace.draw(seed, tf.shape(y), y.dtype)
        noise = tuple(tf.ensure_shape(e, y.shape) for e in noise)
        t = self._t
        if inverse:
            t = t[::-1] if isinstance(t, (list, tuple, np.ndarray)) else tf.reverse(t, [0])
        solution = solve_with(
            functools.partial(field.derivative, len(noise)),
            state,
            t,
            (*noise, *conditions),
            options,
            autonomous=False,
        )
        ends = {part: value[-1] for part, value in solution.y.items()}

        def per_sample(part):
            if part not in ends:
                return None
            value = tf.reshape(ends[part], tf.shape(x)[:batch])
            return tf.ensure_shape(value, x.shape[:batch])

        def positive(value):
            # Integrals of what is not negative, over a time that may run backward.
            return None if value is None else direction * value

        direction = tf.cast(tf.sign(solution.t[1] - solution.t[0]), x.dtype)
        return FlowSolution(
            tf.ensure_shape(tf.reshape(ends["y"], tf.shape(x)), x.shape),
            per_sample("log_det"),
            positive(per_sample("kinetic_energy")),
            positive(per_sample("jacobian_norm")),
            solution.status,
            solution.stats,
        )


def _storages(flow):
    trained, frozen = contents.variables(dict(flow.parameters))
    return {_platform.storage(v): v for v in (*trained, *frozen)}


class _Augmented:
    """The dynamics of the state, its log-determinant and the regularizers.

    An object of its own, whose hash does not change: compiled solves are kept by it.
    """

    def __init__(self, dynamics, autonomous, trace, regularizers):
        self.__wrapped__ = dynamics
        self._autonomous = autonomous
        self.trace = trace
        self.regularizers = regularizers

    def derivative(self, num_noises, t, state, *args):
        """d/dt of the augmented state; `args` are the noises, then the conditions."""
        dynamics, y = self.__wrapped__, state["y"]
        noise, conditions = args[:num_noises], args[num_noises:]
        autonomous = calling.is_autonomous(dynamics, conditions, self._autonomous, y)

        def function(y, conditions):
            return calling.call(dynamics, t, y, conditions, autonomous)

        def divergence(y, conditions):
            return dynamics.divergence(*(() if autonomous else (t,)), y, *conditions)

        closed_form = divergence if callable(getattr(dynamics, "divergence", None)) else None
        field = Field(function, conditions, closed_form)
        dy, trace, norm = self.trace(field, y, noise, "jacobian_norm" in self.regularizers)
        result = {"y": dy, "log_det": trace}
        if "kinetic_energy" in self.regularizers:
            result["kinetic_energy"] = tf.reduce_sum(dy**2, list(range(1, dy.shape.rank)))
        if "jacobian_norm" in self.regularizers:
            result["jacobian_norm"] = norm
        return result


def _one_batch_axis(x, batch):
    """`x` with its first `batch` axes made one."""
    if batch == 1:
        return x
    shape = tf.shape(x)
    flat = tf.reshape(x, tf.concat([[tf.reduce_prod(shape[:batch])], shape[batch:]], 0))
    return tf.ensure_shape(flat, [x.shape[:batch].num_elements(), *x.shape[batch:]])


def _conditions(condition, x, batch):
    """The conditions as a tuple of nests of tensors with one batch axis."""
    if condition is None:
        return ()

    def convert(c):
        c = tf.convert_to_tensor(c, dtype_hint=x.dtype)
        if c.shape.rank == 0:
            return c
        if c.shape.rank is None or not (
            c.shape.rank >= batch and c.shape[:batch].is_compatible_with(x.shape[:batch])
        ):
            raise ValueError(
                "`condition` must have the batch shape of the input as its leading axes, "
                f"{x.shape[:batch]}, or be a scalar. Received: shape {c.shape}"
            )
        return _one_batch_axis(c, batch)

    conditions = condition if isinstance(condition, (tuple, list)) else (condition,)
    return tuple(tf.nest.map_structure(convert, c) for c in conditions)

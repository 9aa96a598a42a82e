"""Forward mode: derivatives of a solution along directions, for the steps that were taken."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import Unpack

from tfsymadj import arguments
from tfsymadj.dynamics.split import Split
from tfsymadj.dynamics.variational import Along, Directions, Tangents
from tfsymadj.gradients import Backprop, Gradient, get_gradient
from tfsymadj.gradients.no_gradient import without_gradient
from tfsymadj.loop.integrate import integrate
from tfsymadj.methods import Newton, get_method
from tfsymadj.options import Options, SolverOptions, documented, with_options
from tfsymadj.solution import Solution
from tfsymadj.solve import solve_with

_SOURCES = ("y0", "t", "args")


@documented
@with_options
@tf.autograph.experimental.do_not_convert
def jvp(
    dynamics: Callable,
    y0: Any,
    t: Any,
    *,
    tangents: Mapping[str, Any],
    args: Any = (),
    **options: Unpack[SolverOptions],
) -> tuple[Solution, Any]:
    """Solves dy/dt = dynamics(t, y, *args), and the derivative of the solution along a direction.

    The Jacobian-vector product J v, for the steps that `solve` takes: the same method applied to
    the variational equation d(dy)/dt = (df/dy) dy + (df/dp) dp beside the state, whose error alone
    decides about the steps. It is exact in the sense in which the gradient is: with the cotangent w
    of `y` and the gradient J^T w of a tape, <w, J v> = <J^T w, v> up to rounding. It holds no more
    than the solve does: a state and its tangent.

    Each evaluation of the dynamics has one of its derivative beside it, rejected steps too; the
    counts are those of `solve`. A tape around it is the symplectic adjoint of state and tangent: so
    the gradient of <w, J v> is exact as well, at the memory of checkpoints (Ito, Matsuda,
    Miyatake, Adjoint-based exact Hessian computation, BIT 61, 503-522, 2021). With a tangent of `t`
    only `gradient="backprop"` has such a gradient.

    Args:
        dynamics: see `solve`.
        y0: likewise.
        t: likewise.
        tangents: the direction, a dict with some of the keys `"y0"`, `"t"`, `"args"` and
            `"variables"`. The first three are as what they belong to, in shapes and structure;
            None in place of a tensor of `args` stands for zero. `"variables"` is a list of pairs
            `(variable, tangent)`, such as `zip(model.trainable_variables, direction)`; a variable
            that the dynamics don't read counts for nothing.
        args: see `solve`.
        **options: those of `Options`.

    Returns:
        `(solution, dy)`: the `Solution`, and the derivative of its `y`, of the same structure.

    Raises:
        ValueError, TypeError: as `solve`; for tangents that don't fit; with `event`, `dense`,
            `lanes` or `mass`, or a method that moves halves of a state; with a tangent of `t` and
            `jumps` or `batch_axis`; with one of `args` or variables, and `jumps` that are tensors.
        tf.errors.InvalidArgumentError: see `on_failure`.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> options = dict(args=(2.0,), rtol=1e-8, atol=1e-8)
    >>> solution, dy = tfsymadj.jvp(
    ...     lambda t, y, a: -a * y, [1.0], [0.0, 1.0], tangents={"args": (1.0,)}, **options
    ... )
    >>> bool(abs(dy[-1, 0] + tf.exp(-2.0)) < 1e-6)  # d exp(-a) / da
    True
    """
    chosen = Options.of("jvp", options)
    if not isinstance(tangents, Mapping) or not set(tangents) <= {*_SOURCES, "variables"}:
        raise ValueError(
            "`tangents` must be a dict with some of the keys 'y0', 't', 'args' and 'variables'. "
            f"Received: {tangents!r}"
        )
    state = arguments.as_state(y0)
    arrays = arguments.as_args(args, tf.nest.flatten(state)[0].dtype)
    times, _ = arguments.as_times(t, chosen.batch_axis)
    directions = _direction(state, arrays, times, tangents)
    return _solved(dynamics, y0, t, args, chosen, directions)


def _direction(state, arrays, times, tangents):
    """The `Directions` of one direction, a dict, for the arguments as tensors."""
    ys = _tangents_of("y0", tf.nest.flatten(state), _flat("y0", state, tangents.get("y0")))
    given = _flat("args", arrays, _as_tuple(tangents.get("args")))
    found = _tangents_of("args", tf.nest.flatten(arrays), given)
    positions = tuple(i for i, v in enumerate(found) if v is not None)
    pairs = [(_variable(v), d) for v, d in tangents.get("variables") or ()]
    variables = [v for v, _ in pairs]
    moving = _tangents_of("t", [times], [tangents.get("t")])
    return Directions(
        Along(positions, several=False),
        Tangents(
            [tf.zeros_like(y) if v is None else v for v, y in zip(ys, tf.nest.flatten(state))],
            [found[i] for i in positions],
            _tangents_of("variables", variables, [d for _, d in pairs]),
            [v for v in moving if v is not None],
        ),
        variables,
    )


class Sensitivities(NamedTuple):
    """A solution and its Jacobians.

    Each Jacobian is a nest like `y0`, of the outputs, of nests like what they are differentiated
    for. The tensors have the axes of the output, `(len(t), ...)`, and then those of the other.

    Attributes:
        solution: `Solution`.
        y0: Jacobian for the initial state; None where it was not asked for.
        t: for the times; likewise.
        args: for the arguments, a tuple; likewise, and for tensors of integers.
        variables: for the variables, a list.
    """

    solution: Solution
    y0: Any = None
    t: Any = None
    args: Any = None
    variables: Any = None


@documented
@with_options
@tf.autograph.experimental.do_not_convert
def sensitivities(
    dynamics: Callable,
    y0: Any,
    t: Any,
    *,
    wrt: str | Sequence[str] = ("y0", "args"),
    variables: Sequence[Any] = (),
    args: Any = (),
    **options: Unpack[SolverOptions],
) -> Sensitivities:
    """Solves dy/dt = dynamics(t, y, *args), with the Jacobians of the solution for what it is of.

    All of their columns in one pass: each evaluation of the dynamics is shared by P directions, one
    for each number that the solution is differentiated for. It is for few numbers and many outputs;
    for many numbers and a scalar there is the gradient. See `jvp` for what is exact about it.

    Args:
        dynamics: see `solve`.
        y0: likewise, of sizes that are known.
        t: likewise.
        wrt: some of `"y0"`, `"t"` and `"args"`, or one of them.
        variables: variables for which Jacobians are wanted, too.
        args: see `solve`; tensors of integers have no Jacobian.
        **options: those of `Options`.

    Returns:
        `Sensitivities`.

    Raises:
        ValueError, TypeError: as `jvp`; for another `wrt`, complex tensors, sizes that are not
            known, and `batch_axis`.
        tf.errors.InvalidArgumentError: see `on_failure`.

    Example:

    >>> import tfsymadj
    >>> found = tfsymadj.sensitivities(lambda t, y, a: -a * y, [1.0, 2.0], [0.0, 1.0], args=(2.0,))
    >>> found.y0.shape, found.args[0].shape
    (TensorShape([2, 2, 2]), TensorShape([2, 2]))
    """
    chosen = Options.of("sensitivities", options)
    names = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    if not set(names) <= set(_SOURCES) or not (names or variables):
        raise ValueError(f"`wrt` must be some of {list(_SOURCES)}. Received: {wrt!r}")
    if chosen.batch_axis is not None:
        raise ValueError(
            "`batch_axis` can't be given to `sensitivities`; `jvp` takes it, for one direction. "
            f"Received: batch_axis={chosen.batch_axis!r}"
        )
    state = arguments.as_state(y0)
    arrays = arguments.as_args(args, tf.nest.flatten(state)[0].dtype)
    times, _ = arguments.as_times(t)
    held = [_variable(v) for v in variables]
    groups = {
        "y0": tf.nest.flatten(state),
        "args": tf.nest.flatten(arrays),
        "variables": held,
        "t": [times],
    }
    columns = _Columns(groups, (*names, "variables"))
    directions = columns.directions(held)
    solution, dy = _solved(dynamics, y0, t, args, chosen, directions)

    def jacobians(name, like):
        return columns.jacobians(name, like, dy)

    return Sensitivities(
        solution,
        y0=jacobians("y0", state) if "y0" in names else None,
        t=jacobians("t", times) if "t" in names else None,
        args=jacobians("args", arrays) if "args" in names else None,
        variables=jacobians("variables", held) if held else None,
    )


class _Columns:
    """The columns of Jacobians, side by side.

    Args:
        groups: dict of lists of tensors and variables, by what they are.
        wanted: the names of those that there are columns for.
    """

    def __init__(self, groups, wanted):
        self._groups, self._count = groups, 0
        self._blocks = {
            name: [self._block(name, x) if name in wanted else None for x in group]
            for name, group in groups.items()
        }

    def _block(self, name, x):
        """The columns of a tensor, a range; None for integers."""
        if not (x.dtype.is_floating or x.dtype.is_complex):
            return None
        size = x.shape.num_elements()
        if size is None or x.dtype.is_complex:
            raise ValueError(
                f"`{name}` must be real and of a known shape for `sensitivities`; `jvp` takes any. "
                f"Received: {x.dtype.name} of shape {x.shape}"
            )
        begin, self._count = self._count, self._count + size
        return range(begin, self._count)

    def directions(self, variables):
        """`Directions` along all columns."""
        found = {
            name: [self._unit_vectors(b, x) for b, x in zip(self._blocks[name], group)]
            for name, group in self._groups.items()
        }
        ys = [self._zeros(y) if v is None else v for v, y in zip(found["y0"], self._groups["y0"])]
        args = [(i, v) for i, v in enumerate(found["args"]) if v is not None]
        times = [v for v in found["t"] if v is not None]
        tangents = Tangents(ys, [v for _, v in args], found["variables"], times)
        return Directions(Along(tuple(i for i, _ in args), several=True), tangents, variables)

    def _unit_vectors(self, block, x):
        """The tangents of a tensor in all directions, `[directions, ...]`."""
        if block is None:
            return None
        rows = np.zeros([self._count, len(block)])
        rows[block.start : block.stop] = np.eye(len(block))
        return tf.constant(rows.reshape([self._count, *x.shape]), x.dtype)

    def _zeros(self, y):
        """No direction at all, of a tensor that may have any shape."""
        return tf.zeros(tf.concat([[self._count], tf.shape(y)], 0), y.dtype)

    def jacobians(self, name, like, dy):
        """A nest like `dy` of nests like `like`."""
        columns = list(zip(self._blocks[name], self._groups[name]))
        of_each = [
            tf.nest.pack_sequence_as(like, [self._jacobian(d, block, x) for block, x in columns])
            for d in tf.nest.flatten(dy)
        ]
        return tf.nest.pack_sequence_as(dy, of_each)

    @staticmethod
    def _jacobian(d, block, x):
        """The Jacobian of an output, of derivatives `[times, directions, ...]`, for a tensor."""
        if block is None:
            return None
        part = tf.transpose(d[:, block.start : block.stop], [0, *range(2, d.shape.rank), 1])
        part = tf.reshape(part, tf.concat([tf.shape(part)[:-1], x.shape], 0))
        return tf.ensure_shape(part, [d.shape[0], *d.shape[2:], *x.shape])


class _Forward(Gradient):
    """The solution and its derivative for times that move, which have no gradient."""

    def solve(self, problem):
        outcome = integrate(problem)
        message = (
            "The gradient of `jvp` or `sensitivities` with a tangent of `t` was asked for, which "
            "only `gradient='backprop'` has."
        )
        inputs = [*problem.ys, *problem.dynamics.captured, *problem.all_times]
        return outcome.with_states(without_gradient(outcome.states, inputs, message))


def _solved(dynamics, y0, t, args, options, directions):
    """`(solution, dy)` along directions."""
    for name in ("event", "dense", "lanes"):
        if getattr(options, name):
            raise ValueError(
                f"`{name}` can't be given to `jvp` or `sensitivities`. "
                f"Received: {name}={getattr(options, name)!r}"
            )
    if options.mass is not None:
        raise ValueError(
            "`mass` can't be given to `jvp` or `sensitivities`; use a tape. "
            f"Received: mass={options.mass!r}"
        )
    if get_method(options.method).splits:
        raise ValueError(
            "`method` must be a Runge-Kutta method for `jvp` and `sensitivities`. "
            f"Received: {options.method!r}"
        )
    if isinstance(dynamics, Split) and get_method(options.method).iterates:
        raise ValueError(
            "`dynamics` can't be a `Split` for `jvp` and `sensitivities` with an implicit method. "
            f"Received: {dynamics!r}"
        )
    if arguments.may_depend(options.jumps) and (
        directions.tangents.args or directions.tangents.variables
    ):
        raise ValueError(
            "`jumps` must be numbers for `jvp` and `sensitivities`, which don't differentiate for "
            "them. If they depend on nothing that has a tangent, give `jumps.numpy()`, or in a "
            f"graph `tf.stop_gradient(jumps)`. Received: {options.jumps!r}"
        )
    if directions.along.several or directions.tangents.times:
        options = dataclasses.replace(options, newton=_as_one_system(options))
    if directions.tangents.times:
        for name in ("jumps", "batch_axis"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"`{name}` can't be given together with a tangent of `t`. "
                    f"Received: {name}={getattr(options, name)!r}"
                )
        if not isinstance(get_gradient(options.gradient), Backprop):
            options = dataclasses.replace(options, gradient=_Forward())
    solution = solve_with(dynamics, y0, t, args, options, directions=directions)
    y, dy, _ = solution.y
    return solution._replace(y=y), dy


def _as_one_system(options):
    """The `Newton` for states whose first axis is not that of examples: of directions, or times."""
    newton = options.newton
    if not get_method(options.method).iterates or getattr(newton, "jacobian", "dense") != "dense":
        return newton
    config = {} if newton is None else newton.get_config()
    return Newton(**{**config, "jacobian": "whole"})


def _as_tuple(args):
    return args if args is None or isinstance(args, (tuple, list)) else (args,)


def _flat(name, nest, tangents):
    """The leaves of a nest of tangents, None where there is none."""
    count = len(tf.nest.flatten(nest))
    if tangents is None:
        return [None] * count
    if name == "args":
        tangents = tuple(tangents)
    elif isinstance(tangents, list) and not isinstance(nest, list):
        tangents = tf.convert_to_tensor(tangents, tf.nest.flatten(nest)[0].dtype)
    try:
        tf.nest.assert_same_structure(nest, tangents)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`tangents` must have, for {name!r}, the structure of `{name}`. Received: {tangents!r}"
        ) from error
    return tf.nest.flatten(tangents)


def _tangents_of(name, xs, tangents):
    """Tensors in the dtypes and shapes of `xs`; None where there is no tangent."""
    found = []
    for x, tangent in zip(xs, tangents):
        if tangent is None:
            found.append(None)
            continue
        if not (x.dtype.is_floating or x.dtype.is_complex):
            raise ValueError(
                f"`tangents` must have None, for {name!r}, in place of integers. "
                f"Received: {tangent!r} for {x.dtype.name}"
            )
        if not tf.is_tensor(tangent) and not isinstance(tangent, (tf.Variable, keras.Variable)):
            tangent = tf.constant(np.asarray(tangent), x.dtype)
        tangent = tf.convert_to_tensor(tangent)
        if tangent.dtype != x.dtype or not tangent.shape.is_compatible_with(x.shape):
            raise ValueError(
                f"`tangents` must have, for {name!r}, the dtypes and shapes of what they belong "
                f"to, here {x.dtype.name} of shape {x.shape}. "
                f"Received: {tangent.dtype.name} of shape {tangent.shape}"
            )
        found.append(tangent)
    return found


def _variable(x):
    """The `tf.Variable` of a variable, of TensorFlow's or Keras'."""
    x = x.value if isinstance(x, keras.Variable) else x
    if not isinstance(x, tf.Variable):
        raise TypeError(f"`variables` must hold variables, no tensors. Received: {x!r}")
    return x

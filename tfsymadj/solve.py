"""`solve` and `odeint`: checks the arguments, turns names into objects, compiles eager calls."""

import copy
import functools
import math

import keras
import numpy as np
import tensorflow as tf

from tfsymadj import compiled
from tfsymadj._platform import vectorizing
from tfsymadj.config import is_int, is_real
from tfsymadj.controllers import (
    ConstantSteps,
    Controller,
    PIController,
    attainable,
    tolerance_of,
)
from tfsymadj.dynamics import calling
from tfsymadj.dynamics.closing import close
from tfsymadj.dynamics.identity import Contents
from tfsymadj.gradients import get_gradient
from tfsymadj.integrate import Problem
from tfsymadj.solution import MESSAGES, Solution, Stats, Status
from tfsymadj.tableaus import get_tableau
from tfsymadj.warning import warn

_ON_FAILURE = ("raise", "status")

#: Days of work, and gigabytes for their times alone: more equal steps are a mistake.
_MOST_STEPS = 10**8


@tf.autograph.experimental.do_not_convert
def solve(
    dynamics,
    y0,
    t,
    *,
    args=(),
    method="dopri5",
    rtol=1e-3,
    atol=1e-6,
    num_steps=None,
    step_size=None,
    controller=None,
    first_step=None,
    min_step=None,
    max_steps=4096,
    gradient="symplectic_adjoint",
    autonomous=None,
    on_failure="raise",
):
    """Solves the initial value problem dy/dt = dynamics(t, y, *args), y(t[0]) = y0.

    The solution is differentiable for `y0`, `t`, `args`, and the variables and tensors that the
    dynamics use. Called eagerly, a solve is compiled once (as a `tf.function`) and cached.

    Args:
        dynamics: callable `(t, y, *args) -> dy/dt`: a function, a Keras layer or model, a
            `tf.Module`. `t` is a scalar in the real dtype of the state; the result has the
            structure, shapes and dtypes of `y`. It must be reproducible: no dropout, no updates
            of variables. Python's `if`, `while` and `for` work on tensors (AutoGraph), but not in
            Keras layers.
        y0: the initial state: a tensor or any nest of tensors, floating or complex. A list of
            numbers is an array. In half precision only the dynamics get it, the solver holds it in
            float32.
        t: 1-D, at least two entries, strictly increasing or decreasing: the times at which the
            solution is returned. The solver steps to them exactly, in float64. Where the dynamics
            can't tell them apart in the dtype of the state, as times in seconds since 1970 in
            float32, a warning says so: solve over `t - t[0]`, and add `t[0]` in the dynamics, from
            a float64 tensor in `args`.
        args: nest of tensors; a tuple or list is passed as positional arguments. Numbers of Python
            get the real dtype of the state, arrays and tensors keep theirs.
        method: name of a method (see `tfsymadj.METHODS`) or a `ButcherTableau`.
        rtol: relative tolerance of adaptive steps; see `PIController`.
        atol: absolute tolerance of adaptive steps.
        num_steps: number of equal steps between two entries of `t`.
        step_size: upper bound of equal steps between two entries of `t`.
        controller: `ConstantSteps`, `PIController` or your own `Controller`, in place of `rtol`
            and `atol` or `num_steps` or `step_size`.
        first_step: size of an adaptive solve's first step; None chooses it.
        min_step: smallest step of an adaptive solve; None: as long as t + h differs from t.
        max_steps: bound of the steps that an adaptive solve may try, over all of `t`; at least
            one for each interval of `t`.
        gradient: how the solve is differentiated: `"symplectic_adjoint"`, `"backprop"`,
            `"baseline"`, `"aca"`, `"continuous_adjoint"`, or an object such as
            `SymplecticAdjoint(checkpoints="steps")`.
        autonomous: whether the dynamics are called as `dynamics(y, *args)`; None: False, but for
            Keras layers whose `call` has one positional argument and functional models that have
            no input besides `y0` and `args`.
        on_failure: `"raise"`: a solve that can't go on raises `tf.errors.InvalidArgumentError`
            (except under XLA, which drops assertions); `"status"`: it never raises. In both cases
            `status` tells, and the outputs not reached and all gradients are NaN.

    Returns:
        `Solution`. Each tensor of `y` has a leading axis of `len(t)`.

    Raises:
        ValueError, TypeError: for arguments that don't fit, naming the argument.
        tf.errors.InvalidArgumentError: see `on_failure`.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> solution = tfsymadj.solve(lambda t, y: -y, [1.0], [0.0, 1.0], rtol=1e-6, atol=1e-8)
    >>> float(tf.abs(solution.y[-1, 0] - tf.exp(-1.0))) < 1e-5
    True
    """
    times, with_time = _as_times(t)
    solver = check_options(
        dynamics, times, method=method, rtol=rtol, atol=atol, num_steps=num_steps,
        step_size=step_size, controller=controller, first_step=first_step, min_step=min_step,
        max_steps=max_steps, gradient=gradient, on_failure=on_failure,
    )  # fmt: skip
    state = _as_state(y0)
    args = _as_args(args, tf.nest.flatten(state)[0].dtype)
    solver["controller"] = _at_precision(solver["controller"], tf.nest.flatten(state))
    autonomous = calling.is_autonomous(dynamics, args, autonomous, state)
    options = _Options(**solver, autonomous=autonomous, with_time=with_time)
    if not getattr(dynamics, "built", True):
        calling.build(dynamics, state, args, options.autonomous)

    if tf.executing_eagerly():
        solution = _solve_eagerly(dynamics, state, times, args, options)
        _warn_of_times(dynamics, state, times, options, solution[0].stats.num_accepted)
        if on_failure == "raise":
            _raise_failure(*solution)
        return solution[0]
    _refuse_vectorizing(options.controller, (state, times, args))
    _warn_of_times(dynamics, state, times, options)
    solution, time = _solve(calling.reference(dynamics), state, times, args, options)
    if on_failure == "raise":
        solution = _assert_success(solution, time)
    return solution


def odeint(dynamics, y0, t, **options):
    """The states of `solve(dynamics, y0, t, **options)` only.

    Example:

    >>> import tfsymadj
    >>> tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 0.5, 1.0]).shape
    TensorShape([3, 1])
    """
    return solve(dynamics, y0, t, **options).y


def check_options(
    dynamics, t, *, method, rtol, atol, num_steps, step_size, controller, first_step, min_step,
    max_steps, gradient, on_failure,
):  # fmt: skip
    """Checks the arguments of `solve` but for `y0` and `args`; names become objects, in a dict."""
    if not callable(dynamics):
        raise TypeError(f"`dynamics` must be callable. Received: {dynamics!r}")
    if on_failure not in _ON_FAILURE:
        raise ValueError(f"`on_failure` must be one of {_ON_FAILURE}. Received: {on_failure!r}")
    times, _ = _as_times(t)
    tableau = get_tableau(method)
    controller = _as_controller(controller, tableau, rtol, atol, num_steps, step_size)
    max_steps = _as_max_steps(max_steps)
    if controller.adaptive and (times.shape[0] or 0) - 1 > max_steps:
        raise ValueError(
            "`max_steps` must be at least the number of intervals of `t`: a step ends at each "
            "entry. Increase `max_steps`, or ask for fewer entries of `t`. "
            f"Received: max_steps={max_steps} and {times.shape[0]} entries of `t`"
        )
    return {
        "tableau": tableau if controller.adaptive else tableau.without_error(),
        "controller": controller,
        "first_step": _as_positive("first_step", first_step),
        "min_step": _as_positive("min_step", min_step) or 0.0,
        "max_steps": max_steps,
        "gradient": get_gradient(gradient),
    }


class _Options:
    """The options of a solve; `key` is the identity of what is fixed in its trace."""

    def __init__(self, **options):
        self.__dict__.update(options)

    @property
    def numbers(self):
        """The numbers that are inputs of a compiled solve, a tuple of floats."""
        first_step = () if self.first_step is None else (self.first_step,)
        of_controller = (float(getattr(self.controller, name)) for name in self._inputs)
        return (self.min_step, *first_step, *of_controller)

    @property
    def _inputs(self):
        """Names of the controller's numbers; a subclass may do anything with its own."""
        names = vars(type(self.controller)).get("INPUTS", ())
        return [name for name in names if is_real(getattr(self.controller, name))]

    def with_numbers(self, numbers):
        """The options with a float64 vector in place of `numbers`."""
        changed, controller = copy.copy(self), copy.copy(self.controller)
        changed.min_step, *numbers = tf.unstack(numbers, len(self.numbers))
        if self.first_step is not None:
            changed.first_step, *numbers = numbers
        for name, number in zip(self._inputs, numbers):
            setattr(controller, name, number)
        changed.controller = controller
        return changed

    @property
    def key(self):
        others = {k: v for k, v in vars(self.controller).items() if k not in self._inputs}
        return (
            self.tableau, self.first_step is None, self.max_steps, self.gradient, self.autonomous,
            self.with_time, type(self.controller), Contents(others).key,
        )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _vector(numbers):
    with tf.init_scope():
        return tf.constant(numbers, tf.float64)


def _solve(dynamics, state, times, args, options, num_steps=None, caller=None):
    """Traces one solve into the current graph; returns the solution and the time it ended at.

    Args:
        dynamics: callable that returns the dynamics, which a compiled eager solve must not hold.
        state: nest of tensors.
        times: float64 vector.
        args: tuple of nests of tensors.
        options: `_Options`.
        num_steps: number of steps as an int32 scalar, where an eager caller knows it.
        caller: see `dynamics.closing.close`.
    """
    # Half precision is for the dynamics: sums over steps and error estimates need more.
    ys = [
        tf.cast(y, tf.float32) if y.dtype in (tf.float16, tf.bfloat16) else y
        for y in tf.nest.flatten(state)
    ]
    function = calling.as_function(dynamics, state, args, options.autonomous)
    steps = _as_count(options.controller.num_steps(times))
    if not isinstance(steps, int):  # a matter of the values of `t`: known to eager callers only
        steps = num_steps
    known = steps is not None
    problem = Problem(
        dynamics=close(function, ys, owner=dynamics(), caller=caller),
        ys=ys,
        ts=times,
        tableau=options.tableau,
        controller=options.controller,
        max_steps=steps if known else options.max_steps,
        known_length=known,
        first_step=options.first_step,
        min_step=options.min_step,
        with_time=options.with_time,
    )
    solved = options.gradient.solve(problem)
    solution = Solution(
        t=times,
        y=tf.nest.map_structure(
            lambda y, y0: tf.cast(y, y0.dtype), tf.nest.pack_sequence_as(state, solved.ys), state
        ),
        status=solved.status,
        stats=Stats(
            num_steps=solved.num_steps,
            num_accepted=solved.num_accepted,
            num_rejected=solved.num_steps - solved.num_accepted,
            num_evaluations=solved.num_evaluations,
            num_backward_evaluations=solved.num_backward_evaluations,
        ),
    )
    return solution, solved.time


def _solve_eagerly(dynamics, state, times, args, options):
    """The same as a compiled function: only so does a custom gradient save memory."""
    inputs = {"state": state, "times": times, "args": args, "numbers": _vector(options.numbers)}
    steps = options.controller.num_steps(times)
    if steps is not None:
        inputs["num_steps"] = tf.constant(_as_count(int(steps)), tf.int32)

    def function(caller, inputs):
        with_numbers = options.with_numbers(inputs.pop("numbers"))
        return _solve(caller.dynamics, options=with_numbers, caller=caller, **inputs)

    return compiled.solve(function, dynamics, inputs, options.key)


def _as_state(y0):
    def convert(y):
        y = _as_tensor("y0", y)
        if not (y.dtype.is_floating or y.dtype.is_complex):
            raise TypeError(f"`y0` must be floating or complex. Received: dtype {y.dtype.name}")
        if y.shape.rank is None:
            raise ValueError(
                "`y0` must have a known rank; give it one by `tf.ensure_shape`, in which sizes may "
                f"be None. Received: {y!r}"
            )
        return y

    # A list of numbers is an array, as everywhere in TensorFlow.
    if isinstance(y0, list) and not any(tf.is_tensor(y) for y in y0):
        y0 = _as_tensor("y0", y0)
    state = tf.nest.map_structure(convert, y0)
    if not tf.nest.flatten(state):
        raise ValueError(f"`y0` must hold at least one tensor. Received: {y0!r}")
    return state


def _as_args(args, dtype):
    """A tuple of nests of tensors; numbers of Python get the dtype of the state."""

    def convert(x):
        if type(x) in (int, float):
            return tf.constant(x, dtype.real_dtype)
        if type(x) is complex:
            return tf.constant(x, tf.complex128 if dtype.real_dtype == tf.float64 else tf.complex64)
        return _as_tensor("args", x)

    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    return tf.nest.map_structure(convert, args)


def _as_tensor(name, x):
    """`x` as a dense tensor of numbers."""
    try:
        if isinstance(x, (tf.RaggedTensor, tf.SparseTensor, type(None))):
            raise TypeError(f"{type(x).__name__} is no tensor")
        x = tf.convert_to_tensor(x)
        if x.dtype in (tf.string, tf.resource, tf.variant):
            raise TypeError(f"{x.dtype.name} is no number")
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`{name}` must be a dense tensor of numbers, or a nest of such (a tuple or dict; a "
            "list of numbers is an array): use `to_tensor()` of a ragged and `tf.sparse.to_dense` "
            "of a sparse one, a tuple for arrays of unequal shapes, `ODELayer` for symbolic ones "
            "of Keras, and leave out what is None or bind it by `functools.partial`. "
            f"Received: {x!r}"
        ) from error
    return x


def _as_times(t):
    """The times as a float64 vector, and whether they may need a gradient."""
    differentiable = tf.is_tensor(t) or isinstance(t, (tf.Variable, keras.Variable))
    if not differentiable:
        if any(tf.is_tensor(x) for x in tf.nest.flatten(t)):
            differentiable = True
            t = tf.stack([tf.cast(x, tf.float64) for x in t])
        else:
            t = tf.constant(np.asarray(t, np.float64))
    times = tf.cast(tf.convert_to_tensor(t), tf.float64)
    if times.shape.rank != 1 or (times.shape[0] is not None and times.shape[0] < 2):
        raise ValueError(f"`t` must be 1-D with at least two entries. Received: {t!r}")
    values = tf.get_static_value(times)
    if values is not None:
        steps = np.diff(values)
        if not (np.all(np.isfinite(values)) and (np.all(steps > 0) or np.all(steps < 0))):
            raise ValueError(
                "`t` must be finite and strictly increasing or strictly decreasing. "
                f"Received: {values}"
            )
    return times, differentiable


def _as_controller(controller, tableau, rtol, atol, num_steps, step_size):
    if num_steps is not None and step_size is not None:
        raise ValueError(
            "`num_steps` and `step_size` can't both be given. "
            f"Received: num_steps={num_steps!r}, step_size={step_size!r}"
        )
    fixed = num_steps is not None or step_size is not None
    if controller is not None:
        if fixed:
            raise ValueError(
                "`controller` can't be given together with `num_steps` or `step_size`. "
                f"Received: controller={controller!r}, num_steps={num_steps!r}, "
                f"step_size={step_size!r}"
            )
        if not isinstance(controller, Controller):
            raise TypeError(f"`controller` must be a `Controller`. Received: {controller!r}")
    elif fixed:
        controller = ConstantSteps(num_steps, step_size)
    elif tableau.adaptive:
        controller = PIController(rtol, atol)
    if controller is None or (controller.adaptive and not tableau.adaptive):
        raise ValueError(
            f"The method {tableau.name!r} has no error estimate and needs `num_steps` or "
            f"`step_size`. Received: method={tableau.name!r}, controller={controller!r}"
        )
    return controller.for_method(tableau)


def _refuse_vectorizing(controller, inputs):
    """Adaptive steps that differ from one element of a `tf.vectorized_map` to the next."""
    if controller.adaptive and vectorizing.differs_by_element(tf.nest.flatten(inputs)):
        raise ValueError(
            "`y0`, `t` and `args` must not depend on the element of a `tf.vectorized_map` if steps "
            "are adaptive: TensorFlow can't vectorize a loop that takes other steps for each "
            "element. Use `tf.map_fn`, one solve for the whole batch, or equal steps by "
            f"`num_steps` or `step_size`. Received: controller={controller!r}"
        )


def _at_precision(controller, ys):
    """The controller; with a warning where `rtol` is below the precision of the states."""
    if not isinstance(controller, PIController):
        return controller
    rtols = [tolerance_of(controller.rtol, i, len(ys)) for i in range(len(ys))]
    counted = [attainable(rtol, y.dtype.real_dtype) for rtol, y in zip(rtols, ys)]
    for rtol, at_least, y in zip(rtols, counted, ys):
        if np.any(at_least != rtol):
            warn(
                f"`rtol` is below the precision of {y.dtype.name} and counts as that precision; "
                f"loosen it, or solve in double precision. Received: rtol={rtol!r}"
            )
            # Solved in float32, the state would not tell the controller that it has less.
            return controller.with_tolerances(counted, controller.atol)
    return controller


def _warn_of_times(dynamics, state, times, options, num_accepted=None):
    """Warns of times that the dynamics can't tell apart, where the values of `t` are known.

    Args:
        num_accepted: the number of steps, where the solve is over.
    """
    values = tf.get_static_value(times)
    if values is None or options.autonomous:
        return
    dtype = tf.nest.flatten(state)[0].dtype.real_dtype
    latest = np.max(np.abs(values))
    spacing = float(np.spacing(latest.astype(dtype.as_numpy_dtype)))
    lengths = np.abs(np.diff(values))
    step, length = np.min(lengths), np.sum(lengths)
    # To read the number of steps is to wait for them: done only where they may be too small.
    if length < spacing * (options.max_steps if options.controller.adaptive else 2**20):
        count = options.controller.num_steps(times) if num_accepted is None else num_accepted
        count = tf.get_static_value(count) if tf.is_tensor(count) else count
        step = min(step, length / max(int(count or 0), 1))
    if step < spacing and not calling.ignores_time(dynamics):
        warn(
            f"The dynamics can't tell the times of `t` apart: they get them in {dtype.name}, the "
            "real dtype of the state. Shift the origin of time: solve over `t - t[0]` and add "
            "`t[0]` in the dynamics, in float64; or take a more precise state. Received: steps of "
            f"{step:.3g} at t = {latest:.10g}, where numbers of {dtype.name} are {spacing:.3g} "
            "apart"
        )


def _as_positive(name, value):
    if value is None:
        return None
    number = tf.get_static_value(value) if tf.is_tensor(value) else value
    try:
        number = float(number)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"`{name}` must be a positive, finite number. Received: {value!r}")
    return number


def _as_count(steps):
    """The number of equal steps, if it is known and one that anybody may have meant."""
    if isinstance(steps, int) and steps > _MOST_STEPS:
        raise ValueError(
            f"`num_steps` must not make more than {_MOST_STEPS:,} steps, nor `step_size`; an "
            f"adaptive method may do with fewer. Received: {steps:,} steps or more"
        )
    return steps


def _as_max_steps(max_steps):
    if not (is_int(max_steps, 1) and max_steps < 2**31 - 1):
        raise ValueError(f"`max_steps` must be a positive int32. Received: {max_steps!r}")
    return int(max_steps)


def _message(status, time):
    return f"{MESSAGES[status]} Received: status {status.name} at t = {time!r}"


def _raise_failure(solution, time):
    status = Status(int(solution.status))
    if status is not Status.SUCCESS:
        raise tf.errors.InvalidArgumentError(None, None, _message(status, float(time)))


def _assert_success(solution, time):
    """Assertions after the loop; XLA drops them."""
    checks = [
        tf.debugging.Assert(
            tf.not_equal(solution.status, int(status)),
            [f"{message} Received: status {status.name} at t =", time],
        )
        for status, message in MESSAGES.items()
    ]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(tf.identity, solution)

"""`solve` and `odeint`: checks the arguments, turns names into objects, compiles eager calls."""

import math
import threading
import warnings
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfsymadj._platform import vectorizing
from tfsymadj.controllers import (
    ConstantSteps,
    Controller,
    PIController,
    attainable,
    tolerance_of,
)
from tfsymadj.dynamics import calling, contents
from tfsymadj.dynamics.closing import close
from tfsymadj.gradients import get_gradient
from tfsymadj.integrate import Problem
from tfsymadj.solution import MESSAGES, Solution, Stats, Status
from tfsymadj.tableaus import get_tableau

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
            of variables.
        y0: the initial state: a tensor or any nest of tensors, floating or complex.
        t: 1-D, at least two entries, strictly increasing or decreasing: the times at which the
            solution is returned. The solver steps to them exactly.
        args: nest of tensors; a tuple or list is passed as positional arguments.
        method: name of a method (see `tfsymadj.METHODS`) or a `ButcherTableau`.
        rtol: relative tolerance of adaptive steps; see `PIController`.
        atol: absolute tolerance of adaptive steps.
        num_steps: number of equal steps between two entries of `t`.
        step_size: upper bound of equal steps between two entries of `t`.
        controller: `ConstantSteps`, `PIController` or your own `Controller`, in place of `rtol`
            and `atol` or `num_steps` or `step_size`.
        first_step: size of an adaptive solve's first step; None chooses it.
        min_step: smallest step of an adaptive solve; None: as long as t + h differs from t.
        max_steps: bound of the steps that an adaptive solve may try, over all of `t`.
        gradient: how the solve is differentiated: `"symplectic_adjoint"`, `"backprop"`,
            `"baseline"`, `"aca"`, `"continuous_adjoint"`, or an object such as
            `SymplecticAdjoint(checkpoints="steps")`.
        autonomous: whether the dynamics are called as `dynamics(y, *args)`; None: False, but for
            Keras layers whose `call` has one positional argument and functional models of one
            input.
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
    args = _as_args(args)
    _warn_of_precision(solver["controller"], tf.nest.flatten(state))
    autonomous = calling.is_autonomous(dynamics, args, autonomous)
    options = _Options(**solver, autonomous=autonomous, with_time=with_time)
    calling.build(dynamics, state, args, options.autonomous)

    if tf.executing_eagerly():
        solution = _solve_compiled(dynamics, state, times, args, options)
        if on_failure == "raise":
            _raise_failure(*solution)
        return solution[0]
    _refuse_vectorizing(options.controller, (state, times, args))
    solution, time = _solve(lambda: dynamics, state, times, args, options)
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
    _as_times(t)
    tableau = get_tableau(method)
    controller = _as_controller(controller, tableau, rtol, atol, num_steps, step_size)
    return {
        "tableau": tableau if controller.adaptive else tableau.without_error(),
        "controller": controller,
        "first_step": _as_positive("first_step", first_step),
        "min_step": _as_positive("min_step", min_step) or 0.0,
        "max_steps": _as_max_steps(max_steps),
        "gradient": get_gradient(gradient),
    }


class _Options:
    """The options of a solve that are fixed in its trace; `key` is their identity."""

    def __init__(self, **options):
        self.__dict__.update(options)

    @property
    def key(self):
        return (
            self.tableau, repr(self.first_step), self.min_step, self.max_steps, self.gradient,
            self.autonomous, self.with_time, type(self.controller),
            contents.fingerprint(vars(self.controller)),
        )  # fmt: skip


def _solve(reference, state, times, args, options, num_steps=None):
    """Traces one solve into the current graph; returns the solution and the time it ended at.

    Args:
        reference: callable that returns the dynamics. TensorFlow keeps gradient functions for
            ever, so that an eager solve must not hold the dynamics themselves.
        state: nest of tensors.
        times: float64 vector.
        args: tuple of nests of tensors.
        options: `_Options`.
        num_steps: number of steps as an int32 scalar, where an eager caller knows it.
    """
    ys = tf.nest.flatten(state)
    function = calling.as_function(reference, state, args, options.autonomous)
    steps = _as_count(options.controller.num_steps(times))
    if not isinstance(steps, int):  # a matter of the values of `t`: known to eager callers only
        steps = num_steps
    known = steps is not None
    problem = Problem(
        dynamics=close(function, ys, owner=reference()),
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
        y=tf.nest.pack_sequence_as(state, solved.ys),
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


# Compiled eager solves: owner of the dynamics -> {key: tf.function}.
_compiled = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def _solve_compiled(dynamics, state, times, args, options):
    """An eager solve as a compiled function: only so does a custom gradient save memory."""
    steps = options.controller.num_steps(times)
    if steps is not None:
        steps = tf.constant(_as_count(int(steps)), tf.int32)
    # Ranks and dtypes too: a trace is relaxed to unknown sizes, but not to unknown ranks.
    kinds = tuple((x.dtype, x.shape.rank) for x in tf.nest.flatten((state, args)))
    key = (options.key, kinds, contents.fingerprint(dynamics))
    with _lock:
        try:
            functions = _compiled.setdefault(contents.owner(dynamics), {})
        except TypeError:  # can't be referenced weakly or hashed: compiled for this call only
            functions = {}
        function = functions.get(key)
        if function is None:
            function = functions[key] = _compile(dynamics, options)
    if tf.config.functions_run_eagerly():  # a switch for debugging, which would save no memory
        function = function.get_concrete_function(state, times, args, steps)
    return function(state, times, args, steps)


def _compile(dynamics, options):
    # The compiled function must not keep the dynamics alive, or the weak cache would leak.
    reference = contents.weakly(dynamics)

    @tf.function(autograph=False, reduce_retracing=True)
    def compiled_solve(state, times, args, steps):
        return _solve(reference, state, times, args, options, steps)

    return compiled_solve


def _as_state(y0):
    def convert(y):
        y = tf.convert_to_tensor(y)
        if not (y.dtype.is_floating or y.dtype.is_complex):
            raise TypeError(f"`y0` must be floating or complex. Received: dtype {y.dtype.name}")
        return y

    if isinstance(y0, list):  # a list of numbers is an array, as everywhere in TensorFlow
        y0 = y0 if any(tf.is_tensor(y) for y in y0) else tf.convert_to_tensor(y0)
    state = tf.nest.map_structure(convert, y0)
    if not tf.nest.flatten(state):
        raise ValueError(f"`y0` must hold at least one tensor. Received: {y0!r}")
    return state


def _as_args(args):
    args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    return tf.nest.map_structure(tf.convert_to_tensor, args)


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


def _warn_of_precision(controller, ys):
    if not isinstance(controller, PIController):
        return
    for i, y in enumerate(ys):
        rtol = tolerance_of(controller.rtol, i, len(ys))
        if np.any(attainable(rtol, y.dtype.real_dtype) != rtol):
            warnings.warn(
                f"`rtol` is below the precision of {y.dtype.name} and counts as that precision; "
                f"loosen it, or solve in double precision. Received: rtol={rtol!r}",
                stacklevel=3,
            )
            return


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
    if (
        isinstance(max_steps, bool)
        or not isinstance(max_steps, (int, np.integer))
        or not 1 <= max_steps < 2**31 - 1
    ):
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

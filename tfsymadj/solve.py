"""`solve` and `odeint`: from arguments to a problem, traced into a graph, compiled when eager."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from typing_extensions import Unpack

from tfsymadj import arguments, compiled, controls
from tfsymadj._platform import vectorizing
from tfsymadj.arithmetic import entry
from tfsymadj.dynamics import calling
from tfsymadj.dynamics.closing import close, refuse_forward_mode
from tfsymadj.dynamics.mass import Mass, Weighed
from tfsymadj.dynamics.variational import Variational
from tfsymadj.events.event import as_function
from tfsymadj.events.root import with_event
from tfsymadj.gradients import Backprop
from tfsymadj.gradients.queued import Queued
from tfsymadj.loop.clock import Clock
from tfsymadj.loop.failures import monotonic
from tfsymadj.loop.intervals import with_jumps
from tfsymadj.loop.problem import Problem
from tfsymadj.loop.queue import Queue
from tfsymadj.loop.watch import Watch
from tfsymadj.options import Options, Solver, SolverOptions, documented, with_options
from tfsymadj.solution import MESSAGES, Interpolant, Solution, Status
from tfsymadj.xla import compiled as compiled_by_xla


@documented
@with_options
@tf.autograph.experimental.do_not_convert
def solve(
    dynamics: Callable, y0: Any, t: Any, *, args: Any = (), **options: Unpack[SolverOptions]
) -> Solution:
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
        t: 1-D, or with `batch_axis` a row for each example, at least two entries, strictly
            increasing or decreasing: the times at which the solution is returned, kept in float64;
            how the solver gets there: see `outputs`. Where the dynamics can't tell them apart in
            the dtype of the state, as times in seconds since 1970 in float32, a warning says so:
            solve over `t - t[0]`, and add `t[0]` in the dynamics, from a float64 tensor in `args`.
        args: nest of tensors; a tuple or list is passed as positional arguments. Numbers of Python
            get the real dtype of the state, arrays and tensors keep theirs.
        **options: those of `Options`: `method`, tolerances or steps, `gradient` and the like.

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
    return solve_with(dynamics, y0, t, args, Options.of("solve", options))


@documented
@with_options
def odeint(
    dynamics: Callable, y0: Any, t: Any, *, args: Any = (), **options: Unpack[SolverOptions]
) -> Any:
    """The states of `solve` only, by the same arguments.

    Args:
        dynamics: see `solve`.
        y0: likewise.
        t: likewise.
        args: likewise.
        **options: those of `Options`: `method`, tolerances or steps, `gradient` and the like.

    Returns:
        `Solution.y`: the nest of `y0`, each tensor with a leading axis of `len(t)`.

    Example:

    >>> import tfsymadj
    >>> tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 0.5, 1.0]).shape
    TensorShape([3, 1])
    """
    return solve_with(dynamics, y0, t, args, Options.of("odeint", options)).y


@tf.autograph.experimental.do_not_convert
def solve_with(
    dynamics, y0, t, args, options: Options, autonomous=None, directions=None
) -> Solution:
    """`solve` by an `Options` object.

    Args:
        dynamics: see `solve`.
        y0: likewise.
        t: likewise.
        args: likewise.
        options: `Options`.
        autonomous: in place of the option of that name.
        directions: `Directions` in which the solution is differentiated. Its `y` is a tuple then:
            of the states, their derivatives, and the clock, see `Variational`.
    """
    times, with_time = arguments.as_times(t, options.batch_axis)
    jumps, with_time = arguments.as_jumps(options.jumps, with_time, options.batch_axis)
    _check_callable(dynamics)
    state = arguments.as_state(y0)
    ys = tf.nest.flatten(state)
    if options.batch_axis is not None:
        arguments.check_batch(state, times)
    args = arguments.as_args(args, ys[0].dtype)
    solver = options.solver(times).at_precision(ys)
    if solver.method.splits:
        arguments.check_halves(state, solver.method)
    if autonomous is None:
        autonomous = calling.is_autonomous(dynamics, args, options.autonomous, state)
    if not getattr(dynamics, "built", True):
        calling.build(dynamics, state, args, autonomous, solver.lanes)
    way = (autonomous, with_time)
    inputs = {"state": state, "times": times, "args": args}
    if solver.events:
        inputs["event_args"] = tuple(arguments.as_args(e.args, ys[0].dtype) for e in solver.events)
    if jumps is not None:
        inputs["jumps"] = jumps
    if options.mass is not None:
        inputs["mass"] = arguments.as_mass(options.mass, state)
    functions = [event.function for event in solver.events]
    if directions is not None:
        solver = dataclasses.replace(solver, along=directions.along)
        inputs["tangents"] = directions.tangents
        functions.append(directions.variables)

    if tf.executing_eagerly():
        solution, time = _solve_eagerly(dynamics, functions, inputs, solver, way)
        _refuse_empty(solution, solver.lanes)
        if not autonomous:
            arguments.warn_of_times(dynamics, state, times, solver, solution.stats.num_accepted)
        if options.on_failure == "raise":
            _raise_failure(solution, time)
        return solution
    _refuse_vectorizing(solver, inputs)
    if not isinstance(solver.gradient, Backprop):
        refuse_forward_mode(tf.nest.flatten(inputs))
    if not autonomous:
        arguments.warn_of_times(dynamics, state, times, solver)
    functions = [calling.reference(function) for function in functions]
    solution, time = _solve(
        calling.reference(dynamics), solver=solver, way=way, functions=functions, **inputs
    )
    if options.on_failure == "raise":
        solution = _assert_success(solution, time)
    return solution


def check(dynamics, t, options: Options):
    """Checks the arguments that a layer or a bijector is made with."""
    _check_callable(dynamics)
    options.solver(arguments.as_times(t)[0])
    if options.event is not None or options.dense:
        raise ValueError(
            "`event` and `dense` are for `solve`: a layer or a flow returns nothing but states. "
            f"Received: {options!r}"
        )
    if options.outputs == "steps":
        raise ValueError(
            "`outputs='steps'` is for `solve`: a layer or a flow returns the states at the times "
            f"`t`. Received: {options!r}"
        )


def _check_callable(dynamics):
    if not callable(dynamics):
        raise TypeError(f"`dynamics` must be callable. Received: {dynamics!r}")


def _solve(
    dynamics,
    state,
    times,
    args,
    solver: Solver,
    way,
    functions=(),
    event_args=(),
    jumps=None,
    mass=None,
    num_steps=None,
    tangents=None,
    caller=None,
):
    """Traces one solve into the current graph; returns the solution and the time it ended at.

    Args:
        dynamics: callable that returns the dynamics, which a compiled eager solve must not hold.
        state: nest of tensors.
        times: float64 vector, or matrix with `batch_axis`.
        args: tuple of nests of tensors.
        solver: `Solver`.
        way: whether the dynamics are autonomous, and whether times may need a gradient.
        functions: callables that return the functions of the events, and the tangents' variables.
        event_args: for each of them the tuple of its further arguments.
        jumps: likewise, or None.
        mass: dict of matrices by the numbers of the state's tensors, or None.
        num_steps: number of steps, int or int32 scalar, where an eager caller knows it.
        tangents: `Tangents`, or None.
        caller: see `dynamics.closing.close`.
    """
    autonomous, with_time = way
    # Half precision is for the dynamics: sums over steps and error estimates need more.
    ys = [
        tf.cast(y, tf.float32) if y.dtype in (tf.float16, tf.bfloat16) else y
        for y in tf.nest.flatten(state)
    ]
    given, last = times, None
    if solver.lanes:
        times, ys, last = arguments.in_lanes(times, ys)
    queue, function, like = _function(dynamics, state, args, ys, autonomous, solver, mass)
    measured = clock = None
    if tangents is not None:
        measured, (*functions, variables) = len(ys), functions
        function = Variational(function, measured, args, variables, tangents, solver.along)
        state, ys, clock = _beside_tangents(state, ys, times, tangents, solver)
        like = ys
    stops, switches, positions = _stops(times, jumps, solver, arguments.time_dtype(state))
    steps = arguments.as_count(solver.controller.num_steps(stops))
    if not isinstance(steps, int):  # a matter of the values of `t`: known to eager callers only
        steps = num_steps
    # Of examples some may be done before the others.
    same = steps is not None and jumps is None and not functions and not solver.lanes
    problem = Problem(
        watch=_watch(functions, event_args, state, ys, solver, caller),
        dynamics=_closed(function, like, dynamics, solver, caller, state),
        ys=ys,
        stops=stops,
        between=times if solver.interpolates and not solver.dense else None,
        method=solver.method,
        controller=solver.controller,
        max_steps=solver.max_steps if steps is None else steps,
        known_length=same,
        first_step=solver.first_step,
        min_step=solver.min_step,
        with_time=with_time,
        max_step=solver.max_step,
        every_step=solver.every_step,
        switches=switches,
        valid=_valid(times, jumps) if solver.dense or jumps is not None else None,
        dense=solver.dense,
        jit_compile=solver.jit_compile,
        lanes=solver.lanes,
        last=last,
        queue=queue,
        measured=measured,
        clock=clock,
    )
    return _solution(problem, solver, state, given, positions)


def _function(dynamics, state, args, ys, autonomous, solver, mass):
    """The `Queue` or None, the dynamics of lists of tensors, and a state to close them with."""

    def of(args):
        function = calling.as_function(dynamics, state, args, autonomous)
        if mass is None:
            return function
        return Weighed(function, Mass([mass.get(i) for i in range(len(ys))]))

    batch = ys[0].shape[0] if solver.lanes else None
    if solver.width is None or (batch is not None and batch <= solver.width):
        return None, of(args), ys
    return _queue(of, args, ys, solver.width)


def _closed(function, ys, dynamics, solver, caller, state):
    """The closed dynamics of a solve."""
    closed = close(function, ys, dynamics(), caller, solver.jit_compile, solver.lanes)
    closed.narrow = any(y.dtype == tf.float16 for y in tf.nest.flatten(state))
    if solver.method.splits:
        closed.live = list(range(len(ys)))  # halves of what the backward pass sees, too
    return closed


def _solution(problem, solver, state, times, positions):
    """The solution of the problem, and the time it ended at.

    Args:
        problem: `Problem`.
        solver: `Solver`.
        state: nest of tensors.
        times: the output times, as they were given.
        positions: where they are among the stops, if these are more.
    """
    gradient = solver.gradient if problem.queue is None else Queued(solver.gradient)
    outcome, event, interpolant = gradient.solve(problem), (), ()
    if problem.watch is not None:
        found = functools.partial(with_event, problem, outcome, solver.gradient)
        outcome, event = compiled_by_xla(found, solver.jit_compile)
        event = event._replace(y=_as_given(event.y, state))
    if solver.dense:
        interpolant = _interpolant(outcome, state, solver.method)
        ys = tf.nest.flatten(interpolant(times))
        outcome = outcome._replace(ys=ys, times=None)
    elif positions is not None and not solver.every_step:
        rows = entry if solver.lanes else tf.gather
        outcome = outcome._replace(ys=[rows(y, positions) for y in outcome.ys])
    t, y = times if outcome.times is None else outcome.times, _as_given(outcome.ys, state)
    return Solution(t, y, outcome.status, outcome.stats, event, interpolant), outcome.time


def _noting(function):
    """The function; errors in it get a note of what `lanes` may have to do with them."""

    @functools.wraps(function)
    def noting(*args):
        try:
            return function(*args)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(
                    "With `lanes` each tensor of `args` with as many rows as `y0` belongs to the "
                    "examples, of which the dynamics get some at a time: give one that they share "
                    "another shape, such as (1, n), or read it from outside."
                )
            raise

    return noting


def _queue(function_of, args, ys, width):
    """The `Queue` of a solve, and the function and the states of as many examples as there are
    lanes, to close the dynamics with.

    Args:
        function_of: callable from `args` to the dynamics of lists of tensors.
        args: tuple of nests of tensors.
        ys: list of tensors.
        width: how many lanes there may be.
    """
    batch = ys[0].shape[0]
    leaves = tf.nest.flatten(args)
    shared = controls.are_shared(args)
    whole = [
        i for i, x in enumerate(leaves) if x.shape.rank and x.shape[0] == batch and not shared[i]
    ]
    count = tf.shape(ys[0])[0]

    def function(rows):
        given = dict(zip(whole, rows))
        merged = [given.get(i, x) for i, x in enumerate(leaves)]
        found = function_of(args=tf.nest.pack_sequence_as(args, merged))
        return _noting(found) if whole and isinstance(found, types.FunctionType) else found

    def with_rows(x):
        """Of as many rows as there are examples: else nothing would tell, under XLA."""
        same = tf.equal(tf.shape(x)[0], count)
        shape = tf.concat([[tf.where(same, count, -2)], tf.shape(x)[1:]], 0)
        return tf.ensure_shape(tf.reshape(x, shape, "rows_of_args"), x.shape)

    own = [leaves[i] if batch is not None else with_rows(leaves[i]) for i in whole]
    first = tf.minimum(tf.range(width), count - 1)
    of_lanes = [tf.gather(x, first) for x in own]
    like = [tf.gather(y, first) for y in ys]
    return Queue(width, own, of_lanes, function), function(of_lanes), like


def _beside_tangents(state, ys, times, tangents, solver):
    """State and list of tensors with the derivatives, and the `Clock` if times move."""
    directions = [
        tf.ensure_shape(tf.cast(v, y.dtype), [*v.shape[: v.shape.rank - y.shape.rank], *y.shape])
        for v, y in zip(tangents.ys, ys)
    ]
    vs, clock, clocks = tf.nest.pack_sequence_as(state, tangents.ys), None, []
    if tangents.times:
        # The times first.
        moving = tangents.times[0]
        moving = tf.transpose(moving) if solver.along.several else moving
        ends = tf.stack([moving[0], moving[-1]])
        inside = solver.interpolates
        clock = Clock(len(ys), ends if inside else moving, moving if inside else None)
        clocks = [tf.stack([moving[0], tf.zeros_like(moving[0])], -1)]
    return (state, vs, clocks), [*ys, *directions, *clocks], clock


def _as_given(ys, state):
    """States in the nest and the dtypes of the initial one."""
    ys = tf.nest.pack_sequence_as(state, ys)
    return tf.nest.map_structure(lambda y, y0: tf.cast(y, y0.dtype), ys, state)


def _interpolant(outcome, state, method):
    """The `Interpolant` of a dense solve, from the states, slopes and times of its steps."""
    *rows, t = outcome.ys
    count = len(rows) // 2
    y, slopes = (tf.nest.pack_sequence_as(state, x) for x in (rows[:count], rows[count:]))
    return Interpolant(t, y, slopes, tf.constant(method.dense))


def _watch(functions, event_args, state, ys, solver, caller):
    """The `Watch` of the events, or None."""
    if not functions:
        return None
    closed = [
        close(
            as_function(function, state, args, solver.lanes),
            ys,
            function(),
            caller,
            solver.jit_compile,
            solver.lanes,
        )
        for function, args in zip(functions, event_args)
    ]
    return Watch(
        closed,
        [e.direction for e in solver.events],
        [e.terminal for e in solver.events],
        max(e.samples for e in solver.events),
    )


def _solve_eagerly(dynamics, functions, inputs, solver, way):
    """The same as a compiled function: only so does a custom gradient save memory."""
    inputs = {**inputs, "numbers": _vector(solver.numbers)}
    unwatched = arguments.unwatched(inputs["args"])
    steps = None
    if not solver.controller.adaptive:
        times, jumps = inputs["times"], inputs.get("jumps")
        if times.shape.rank == 2:
            times = tf.transpose(times)
        elif jumps is not None and jumps.shape.rank == 2:
            times = tf.tile(times[:, tf.newaxis], [1, tf.shape(jumps)[0]])
        stops, *_ = _stops(times, jumps, solver, tf.float64)
        steps = solver.controller.num_steps(stops)
    if steps is not None:
        steps = arguments.as_count(int(steps))
        if not (solver.jit_compile or solver.gradient.plans_by_length or solver.lanes):
            inputs["num_steps"] = tf.constant(steps, tf.int32)
            steps = None

    def function(caller, inputs):
        with_numbers = solver.with_numbers(inputs.pop("numbers"))
        inputs = {"num_steps": steps, **inputs}
        if unwatched:
            inputs["args"] = arguments.stopped(inputs["args"], unwatched)
        return _solve(
            caller.dynamics,
            solver=with_numbers,
            way=way,
            functions=[functools.partial(caller.function, i) for i in range(len(functions))],
            caller=caller,
            **inputs,
        )

    key = (*solver.key, way, steps, unwatched)
    return compiled.solve(function, dynamics, functions, inputs, key)


@functools.lru_cache(maxsize=256)
def _vector(numbers):
    with tf.init_scope():
        return tf.constant(numbers, tf.float64)


def _stops(times, jumps, solver, dtype):
    """`Problem.stops` and `Problem.switches`, and where the output times are among the stops."""
    if jumps is not None:
        return with_jumps(times, jumps, not solver.interpolates, dtype)
    return tf.stack([times[0], times[-1]]) if solver.interpolates else times, None, None


def _valid(times, jumps):
    fine = monotonic(times)
    if jumps is None:
        return fine
    axis = -1 if jumps.shape.rank == 2 else None
    return tf.logical_and(fine, tf.reduce_all(tf.math.is_finite(jumps), axis))


def _refuse_vectorizing(solver, inputs):
    """Steps, or iterations, that differ from one element of a `tf.vectorized_map` to the next."""
    controller = solver.controller
    varies = controller.adaptive or solver.events or solver.lanes or solver.method.iterates
    if varies and vectorizing.differs_by_element(tf.nest.flatten(inputs)):
        raise ValueError(
            "`y0`, `t` and `args` must not depend on the element of a `tf.vectorized_map` if steps "
            "are adaptive, the method is implicit, or there is an `event` or a `batch_axis`: "
            "TensorFlow can't vectorize a loop that takes other steps, or iterations, for each "
            "element. Use `tf.map_fn`, one solve for the whole batch, or equal steps of an "
            "explicit method by `num_steps` or `step_size`. "
            f"Received: controller={controller!r}, method={solver.method.name!r}"
        )


def _refuse_empty(solution, lanes):
    """Where TensorFlow's graph optimizer has cut off what was to be computed."""
    if solution.status.shape.rank != lanes:
        raise tf.errors.InternalError(
            None,
            None,
            "TensorFlow's graph optimizer dropped the solution, as it does where a branch of a "
            "`tf.cond` calls a custom gradient (`tf.recompute_grad`, `keras.remat`) several times. "
            "Switch off the optimization by `tf.config.optimizer.set_experimental_options("
            "{'dependency_optimization': False})`, or compile the caller by XLA. "
            f"Received: status of shape {solution.status.shape}",
        )


def _message(status, time):
    return f"{MESSAGES[status]} Received: status {status.name} at t = {float(time)!r}"


def _raise_failure(solution, time):
    status, time, which = solution.status.numpy(), time.numpy(), ""
    if status.ndim:
        failed = np.flatnonzero(status)
        if not failed.size:
            return
        which = f" of example {failed[0]}, the first of {failed.size} that failed"
        status, time = status[failed[0]], time[failed[0]]
    if Status(status) is not Status.SUCCESS:
        raise tf.errors.InvalidArgumentError(None, None, _message(Status(status), time) + which)


def _assert_success(solution, time):
    """Assertions after the loop; XLA drops them."""
    found, which = solution.status, []
    if found.shape.rank:
        # And one that is none: there may be no examples.
        found, time = (tf.pad(x, [[0, 1]]) for x in (found, time))
        failed = tf.cast(tf.not_equal(found, int(Status.SUCCESS)), tf.int32)
        first, number = tf.argmax(failed, output_type=tf.int32), tf.reduce_sum(failed)
        found, time = tf.gather(found, first), tf.gather(time, first)
        which = ["of example", first, "the first that failed of", number]
    checks = [
        tf.debugging.Assert(
            tf.not_equal(found, int(status)),
            [f"{message} Received: status {status.name} at t =", time, *which],
        )
        for status, message in MESSAGES.items()
    ]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(tf.identity, solution)

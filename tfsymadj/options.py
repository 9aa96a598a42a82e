"""How to solve: the options of `solve`, `odeint`, `ODELayer` and `CNF`, declared once.

A new option is a field of `Options`, with its default, its type and its documentation, and an entry
of `SolverOptions`; `with_options` and `documented` hand them to all that take options.
"""

import copy
import dataclasses
import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
import tensorflow as tf

from tfsymadj.config import Configured, is_int, is_real
from tfsymadj.dynamics.identity import Contents
from tfsymadj.dynamics.variational import Along
from tfsymadj.events import Event
from tfsymadj.gradients import ContinuousAdjoint, Gradient, get_gradient
from tfsymadj.methods import ButcherTableau, Method, Newton, get_method
from tfsymadj.steps import ConstantSteps, Controller, PIController
from tfsymadj.steps.tolerance import attainable, tolerance_of
from tfsymadj.warning import warn

_ON_FAILURE = ("raise", "status")
_OUTPUTS = ("auto", "step", "interpolate", "steps")


class SolverOptions(TypedDict, total=False):
    """The types of the options, for editors and type checkers."""

    method: str | ButcherTableau | Method
    rtol: Any
    atol: Any
    num_steps: int | None
    step_size: float | None
    controller: Controller | None
    first_step: float | None
    min_step: float | None
    max_step: float | None
    max_steps: int
    newton: Newton | None
    mass: Any
    outputs: str
    jumps: Any
    event: Event | list[Event] | tuple[Event, ...] | None
    dense: bool
    batch_axis: int | None
    lanes: int | None
    gradient: str | Gradient
    autonomous: bool | None
    jit_compile: bool | None
    on_failure: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Options(Configured):
    """The options of a solve, checked.

    Args:
        method: name of a method (see `tfsymadj.METHODS`; `"stormer_verlet"` and `"yoshida4"`, for
            a state that is a pair of q and p), a `ButcherTableau` or a `Method`.
        rtol: relative tolerance of adaptive steps; see `PIController`.
        atol: absolute tolerance of adaptive steps.
        num_steps: number of equal steps between two entries of `t`.
        step_size: upper bound of equal steps between two entries of `t`.
        controller: `ConstantSteps`, `PIController` or your own `Controller`, in place of `rtol`
            and `atol` or `num_steps` or `step_size`.
        first_step: size of an adaptive solve's first step; None chooses it.
        min_step: smallest step of an adaptive solve; None: as long as t + h differs from t.
        max_step: largest step of an adaptive solve; None: no bound.
        max_steps: bound of the steps that an adaptive solve may try, over all of `t`; at least
            one for each interval of `t`.
        newton: how the equations of an implicit method's stages are solved: `Newton`; None: as by
            `Newton()`.
        mass: a constant matrix M `(d, d)` on the left, M dy/dt = dynamics(t, y), which acts on the
            last axis of the state; or a nest of them like `y0`, with None for the identity. It may
            be singular, where `y0` solves the equations without a derivative (differential-
            algebraic equations of index 1); else the status is `Status.INCONSISTENT_STATE`. For
            `"trbdf2"`, `"kvaerno3"`, `"kvaerno5"` and tables like theirs, without `jumps`, `event`,
            `dense` and outputs inside of steps. Differentiable.
        outputs: `"step"`: a step ends at each entry of `t`; `"interpolate"`: at the last one only,
            the others come from the method's continuous extension, at no evaluation; `"auto"`:
            interpolated with adaptive steps, if the extension's order is the method's less one or
            more (`dopri5`, `tsit5`, `dop853`, `bosh3`, `adaptive_heun`, `fehlberg2`, `trbdf2`,
            `kvaerno3`, `kencarp4`), else stepped to. With equal steps each entry is a step's end in
            any case. `"steps"`: `Solution.t` and `y` are the times and states after all steps,
            `max_steps + 1` rows, of which the first `stats.num_accepted + 1` count and the others
            repeat the last one.
        jumps: 1-D, in any order, or with `batch_axis` a row of them for each example, filled up
            by any times outside of `t`: times at which the dynamics may jump. Steps end there, and
            evaluations stay on their own side of each, as far as the dtype of the state can tell.
            They are differentiable, and no outputs; those outside of `t` count for nothing. Equal
            steps are counted between two stops, whether these are entries of `t` or jumps.
        event: an `Event` or a list of them. Their functions' signs are looked at several times in
            each step; a root at the start is none. The first one that is terminal ends the solve:
            the outputs not reached are NaN, and the status is success. `Solution.event` tells
            which one it was, when, and the state, differentiable and of the method's order; if
            none was terminal, it tells of the first one. Several roots within an eighth of a step
            may go unnoticed: `max_step`.
        dense: whether `Solution.interpolant` is wanted, the solution at any time, by the method's
            continuous extension, from which the outputs come then. It holds the states and the s
            slopes of all steps: `max_steps` (s + 1) states.
        batch_axis: 0: each entry of the state's first axis, the same one of all its tensors, is an
            example of its own: with its own steps, as if it were solved alone, and own times, `t`
            of shape `(batch, len(t))`, if it has any. Rows of `t` may be filled up by repeating
            their last time, at which nothing is evaluated. The dynamics get `t` of shape
            `(batch,)`, and must not mix examples; what is left of a batch when the others are done
            goes on at the cost of the whole batch. `status`, all of `stats` but `num_states`, and
            `t` if it was, have a batch axis. An example that fails leaves the others alone.
        lanes: with `batch_axis`, how many of the examples are worked on at a time; one that is done
            gives its place to the next: for many examples of unequal lengths. None: all of them.
            Each tensor of `args` that has as long a first axis as `y0` has a row for each example;
            what the dynamics close over they share. If the first examples have other slopes beside
            fewer others, at the start or at the end, the status is `Status.EXAMPLES_MIXED`. The
            backward pass takes the examples in the order of their numbers of steps and solves each
            once more; it holds no more than that of `lanes` examples does.
        gradient: how the solve is differentiated: `"symplectic_adjoint"`, `"backprop"`,
            `"baseline"`, `"aca"`, `"continuous_adjoint"`, `"reversible"`, or an object such as
            `SymplecticAdjoint(checkpoints="steps")`.
        autonomous: whether the dynamics are called as `dynamics(y, *args)`; None: False, but for
            Keras layers whose `call` has one positional argument and functional models that have
            no input besides `y0` and `args`.
        jit_compile: True: the solve and its gradient are compiled by XLA, also if the caller is
            not: eager code, a plain `tf.function`, Keras' `fit`, an exported model. It is much
            faster where a step computes little, takes longer at the first call, and compiles for
            each size of the state anew; in eager code only one tape may record. False: XLA does
            not compile them unless the caller is compiled. None: as TensorFlow does by itself.
        on_failure: `"raise"`: a solve that can't go on raises `tf.errors.InvalidArgumentError`
            (except under XLA, which drops assertions); `"status"`: it never raises. In both cases
            `status` tells, and the outputs not reached and all gradients are NaN.
    """

    method: Any = "dopri5"
    rtol: Any = 1e-3
    atol: Any = 1e-6
    num_steps: int | None = None
    step_size: float | None = None
    controller: Controller | None = None
    first_step: float | None = None
    min_step: float | None = None
    max_step: float | None = None
    max_steps: int = 4096
    newton: Newton | None = None
    mass: Any = None
    outputs: str = "auto"
    jumps: Any = None
    event: Any = None
    dense: bool = False
    batch_axis: int | None = None
    lanes: int | None = None
    gradient: Any = "symplectic_adjoint"
    autonomous: bool | None = None
    jit_compile: bool | None = None
    on_failure: str = "raise"
    _solver: "Solver" = dataclasses.field(init=False)

    def __post_init__(self):
        if self.on_failure not in _ON_FAILURE:
            raise ValueError(
                f"`on_failure` must be one of {_ON_FAILURE}. Received: {self.on_failure!r}"
            )
        if self.outputs not in _OUTPUTS:
            raise ValueError(f"`outputs` must be one of {_OUTPUTS}. Received: {self.outputs!r}")
        if self.jit_compile not in (None, True, False):
            raise ValueError(
                f"`jit_compile` must be True, False or None. Received: {self.jit_compile!r}"
            )
        events = self._events()
        self._check_dense()
        self._check_mass()
        self._check_batch_axis()
        method = self._method().without_interpolant()
        controller = self._controller_for(method)
        if self.max_step is not None and not controller.adaptive:
            raise ValueError(
                "`max_step` bounds adaptive steps; equal ones are bounded by `step_size`. "
                f"Received: max_step={self.max_step!r} and {controller!r}"
            )
        if not (is_int(self.max_steps, 1) and self.max_steps < 2**31 - 1):
            raise ValueError(f"`max_steps` must be a positive int32. Received: {self.max_steps!r}")
        object.__setattr__(
            self,
            "_solver",
            Solver(
                method=_in_use(method, controller, events, self.dense),
                controller=controller,
                first_step=_as_positive("first_step", self.first_step),
                min_step=_as_positive("min_step", self.min_step) or 0.0,
                max_step=_as_positive("max_step", self.max_step),
                max_steps=int(self.max_steps),
                gradient=get_gradient(self.gradient),
                interpolates=False,
                every_step=self.outputs == "steps",
                events=events,
                dense=self.dense,
                lanes=0 if self.batch_axis is None else 1,
                width=None if self.lanes is None else int(self.lanes),
                jit_compile=self.jit_compile,
            ),
        )

    @classmethod
    def of(cls, caller: str, options: Mapping[str, Any]) -> "Options":
        """The options of a dict of keywords, in the name of who was called with them."""
        for name in options:
            if name not in DEFAULTS:
                similar = difflib.get_close_matches(name, DEFAULTS, 1)
                hint = f"; did you mean `{similar[0]}`?" if similar else ""
                raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")
        return cls(**options)

    def get_config(self):
        return {name: getattr(self, name) for name in DEFAULTS}

    @property
    def changed(self) -> dict:
        """Those options that were not left at their defaults."""
        return {
            name: value for name, value in self.get_config().items() if not _is_default(name, value)
        }

    def __repr__(self):
        return f"Options({', '.join(f'{name}={value!r}' for name, value in self.changed.items())})"

    def solver(self, times: tf.Tensor) -> "Solver":
        """What the options stand for, for these times."""
        solver, count = self._solver, times.shape[-1]
        if count != 2 and self._interpolates(solver):
            solver = dataclasses.replace(
                solver, method=self._method().with_interpolant(), interpolates=True
            )
        elif solver.controller.adaptive and (count or 0) - 1 > solver.max_steps:
            raise ValueError(
                "`max_steps` must be at least the number of intervals of `t`: a step ends at each "
                "entry. Increase `max_steps`, or ask for fewer entries of `t`. "
                f"Received: max_steps={solver.max_steps} and {count} entries of `t`"
            )
        # Not the one that was found first: this may be inside of `no_gradient`, or no more.
        gradient = get_gradient(self.gradient)
        if gradient is not solver.gradient:
            solver = dataclasses.replace(solver, gradient=gradient)
        return solver

    def _method(self):
        method = get_method(self.method)
        if self.mass is not None:
            method = method.with_mass()
        if self.newton is None:
            return method
        if not isinstance(self.newton, Newton):
            raise TypeError(f"`newton` must be a `Newton` or None. Received: {self.newton!r}")
        return method.with_newton(self.newton)

    def _interpolates(self, solver):
        if self.outputs in ("step", "steps") or not solver.controller.adaptive:
            return False
        if self.mass is not None:
            return False
        if self.outputs == "interpolate":
            return True
        if solver.gradient.discretises:
            return False
        try:
            method = self._method().with_interpolant()
        except ValueError:
            return False
        return method.dense_order >= method.order - 1

    def _check_dense(self):
        if not isinstance(self.dense, bool):
            raise TypeError(f"`dense` must be True or False. Received: {self.dense!r}")
        if self.dense and (self.event is not None or self.outputs == "steps"):
            raise ValueError(
                "`dense` can't be given together with `event` or `outputs='steps'`. "
                f"Received: event={self.event!r}, outputs={self.outputs!r}"
            )

    def _check_mass(self):
        if self.mass is None:
            return
        for name, default in (("event", None), ("jumps", None), ("dense", False)):
            value = getattr(self, name)
            if value is not default:
                raise ValueError(
                    f"`mass` can't be given together with `{name}`; for jumps solve the pieces "
                    f"between them, each from a consistent `y0`. Received: {name}={value!r}"
                )
        if self.outputs == "interpolate":
            raise ValueError(
                "`mass` needs outputs at the ends of steps, `outputs='auto'`. "
                f"Received: outputs={self.outputs!r}"
            )
        if isinstance(get_gradient(self.gradient), ContinuousAdjoint):
            raise ValueError(
                "`mass` needs an exact gradient, such as 'symplectic_adjoint'. "
                f"Received: gradient={self.gradient!r}"
            )

    def _check_batch_axis(self):
        if self.lanes is not None and (
            self.batch_axis is None or self.event is not None or not is_int(self.lanes, 1)
        ):
            raise ValueError(
                "`lanes` must be a positive int or None, and needs `batch_axis=0` and no `event`. "
                f"Received: lanes={self.lanes!r}, batch_axis={self.batch_axis!r}, "
                f"event={self.event!r}"
            )
        if self.batch_axis is None:
            return
        if not (is_int(self.batch_axis, 0) and self.batch_axis == 0):
            raise ValueError(
                f"`batch_axis` must be 0, the first axis, or None. Received: {self.batch_axis!r}"
            )
        if get_gradient(self.gradient).discretises:
            raise ValueError(
                "`batch_axis` can't be given together with `gradient='reversible'`. Use another "
                f"`gradient`. Received: gradient={self.gradient!r}"
            )
        if self.dense or self.outputs == "steps":
            raise ValueError(
                "`batch_axis` can't be given together with `dense` or `outputs='steps'`. "
                f"Received: dense={self.dense!r}, outputs={self.outputs!r}"
            )

    def _events(self):
        events = self.event
        if events is None:
            return ()
        events = tuple(events) if isinstance(events, (list, tuple)) else (events,)
        for event in events:
            if not isinstance(event, Event):
                raise TypeError(
                    f"`event` must be an `Event` or a list of them. Received: {self.event!r}"
                )
        return events

    def _controller_for(self, method):
        controller, num_steps, step_size = self.controller, self.num_steps, self.step_size
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
        elif method.adaptive:
            controller = PIController(self.rtol, self.atol)
        if controller is None or (controller.adaptive and not method.adaptive):
            raise ValueError(
                f"The method {method.name!r} has no error estimate and needs `num_steps` or "
                f"`step_size`. Received: method={method.name!r}, controller={controller!r}"
            )
        controller = controller.for_method(method)
        return controller if self.batch_axis is None else controller.per_example()


#: The options by name, with their defaults.
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options) if f.init}


@dataclasses.dataclass(frozen=True)
class Solver:
    """The objects that the options stand for; what is no number is part of a trace's identity."""

    method: Method
    controller: Controller
    first_step: Any
    min_step: Any
    max_step: Any
    max_steps: int
    gradient: Gradient
    interpolates: bool
    every_step: bool
    events: tuple
    dense: bool
    lanes: int
    width: int | None
    jit_compile: bool | None
    along: Along | None = None

    def at_precision(self, ys: list) -> "Solver":
        """The solver for a state; with a warning where `rtol` is below its precision."""
        controller = self.controller
        if not isinstance(controller, PIController):
            return self
        rtols = [tolerance_of(controller.rtol, i, len(ys)) for i in range(len(ys))]
        counted = [attainable(rtol, y.dtype.real_dtype) for rtol, y in zip(rtols, ys)]
        for rtol, at_least, y in zip(rtols, counted, ys):
            if np.any(at_least != rtol):
                warn(
                    f"`rtol` is below the precision of {y.dtype.name} and counts as that "
                    "precision; loosen it, or solve in double precision. "
                    f"Received: rtol={rtol!r}"
                )
                # Solved in float32, the state would not tell the controller that it has less.
                controller = controller.with_tolerances(counted, controller.atol)
                return dataclasses.replace(self, controller=controller)
        return self

    @property
    def numbers(self) -> tuple:
        """The numbers that are inputs of a compiled solve, a tuple of floats."""
        given = (x for x in (self.first_step, self.max_step) if x is not None)
        of_controller = (float(getattr(self.controller, name)) for name in self._inputs)
        return (self.min_step, *given, *of_controller)

    @property
    def _inputs(self):
        """Names of the controller's numbers; a subclass may do anything with its own."""
        names = vars(type(self.controller)).get("INPUTS", ())
        return [name for name in names if is_real(getattr(self.controller, name))]

    def with_numbers(self, numbers: tf.Tensor) -> "Solver":
        """The solver with a float64 vector in place of `numbers`."""
        controller = copy.copy(self.controller)
        min_step, *numbers = tf.unstack(numbers, len(self.numbers))
        first_step, max_step = self.first_step, self.max_step
        if first_step is not None:
            first_step, *numbers = numbers
        if max_step is not None:
            max_step, *numbers = numbers
        for name, number in zip(self._inputs, numbers):
            setattr(controller, name, number)
        return dataclasses.replace(
            self, controller=controller, first_step=first_step, min_step=min_step, max_step=max_step
        )

    @property
    def key(self) -> tuple:
        """The identity of all but `numbers`."""
        others = {k: v for k, v in vars(self.controller).items() if k not in self._inputs}
        return (
            self.method, self.first_step is None, self.max_step is None, self.max_steps,
            self.gradient, self.interpolates, self.every_step, self.dense, self.lanes,
            self.width, self.jit_compile, self.along,
            tuple([(e.direction, e.terminal, e.samples) for e in self.events]),
            type(self.controller), Contents(others).key,
        )  # fmt: skip


def _in_use(method, controller, events, dense):
    """The method as the solve needs it."""
    if dense:
        return method.with_interpolant()
    if events:
        return method.with_interpolant(own_rows=False)
    return method if controller.adaptive else method.without_error()


def with_options(function: Callable) -> Callable:
    """Gives a function that hands `**options` to `Options` the signature and documentation of them.

    In its docstring the entry `**options:` of the arguments stands for all of them.
    """
    signature = inspect.signature(function)
    options = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in dataclasses.fields(Options)
        if f.init
    ]
    explicit, rest = [], []
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            explicit.append(parameter)
        elif parameter.name != "options":
            rest.append(parameter)
    signature = signature.replace(parameters=[*explicit, *options, *rest])
    setattr(function, "__signature__", signature)  # noqa: B010 - no attribute of functions to mypy
    return function


def documented(described: Callable) -> Callable:
    """Puts the documentation of the options into a docstring, in place of its `**options:`."""
    if described.__doc__ and Options.__doc__:  # none with `python -OO`
        entries = inspect.cleandoc(Options.__doc__).split("Args:\n")[1].rstrip()
        found = re.search(r"^( *)\*\*options:.*\n(?:\1 +.*\n)*", described.__doc__, re.MULTILINE)
        if found is None:
            raise ValueError(f"No entry `**options:` in the docstring of {described!r}")
        # As far as this docstring is indented, which Python may have done away with.
        indented = textwrap.indent(textwrap.dedent(entries), found[1])
        described.__doc__ = described.__doc__.replace(found[0], indented + "\n")
    return described


def _is_default(name, value):
    return (
        value is DEFAULTS[name]
        or (is_real(value) and value == DEFAULTS[name])
        or (isinstance(value, str) and value == DEFAULTS[name])
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

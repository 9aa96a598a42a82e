"""One explicit Runge-Kutta step and the adjoint of one step. All arithmetic of the methods is here.

States are lists of tensors. Sums over stages are written as chains of subtractions of terms with
negated coefficients: TensorFlow's graph optimizer rewrites chains of additions of one shape into
accumulations in shared temporary variables, which clash inside nested loops.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Step(NamedTuple):
    """One step of a method with s rows, over a state of lists of tensors.

    Attributes:
        ys: the state after the step.
        increments: `ys` minus the state before the step, before rounding.
        errors: the estimate of the local error, or None.
        stages: the s stage values Y_i, each a list of tensors.
        last: the dynamics at the last stage; the next step's first with a FSAL method.
    """

    ys: list
    increments: list
    errors: list | None
    stages: list
    last: list


def rk_step(dynamics, tableau, t, h, ys, first=None):
    """Advances the state by one step.

    Args:
        dynamics: `(t, ys) -> dys`.
        tableau: `ButcherTableau`.
        t: float64 scalar, the time before the step.
        h: float64 scalar, the step, of either sign.
        ys: list of tensors.
        first: the dynamics at `(t, ys)` where they are known already.

    Returns:
        `Step`.
    """
    stages, slopes = [], []
    for i in range(tableau.num_rows):
        with tf.name_scope(f"stage_{i + 1}"):
            if i == 0:
                stage = ys
            else:
                row = _coefficients(h, tableau.a[i], ys)
                stage = _add(ys, _combine(row, slopes, ys))
            stages.append(stage)
            if i == 0 and first is not None:
                slopes.append(first)
            else:
                slopes.append(dynamics(t + tableau.c[i] * h, stage))
    increments = _combine(_coefficients(h, tableau.b, ys), slopes, ys)
    errors = None
    if tableau.adaptive:
        errors = _combine(_coefficients(h, tableau.b_error, ys), slopes, ys)
    end = stages[-1] if tableau.fsal else _add(ys, increments)
    return Step(end, increments, errors, stages, slopes[-1])


class StepGradients(NamedTuple):
    """What one step adds to the gradients.

    Attributes:
        sums: the sums given, plus lambda_n - lambda_{n+1}, the gradients of the captured inputs of
            the dynamics and those of the variables.
        start: dL/dt_n at fixed h, float64 scalar, or None.
        step: dL/dh, float64 scalar, or None.
    """

    sums: list
    start: tf.Tensor | None
    step: tf.Tensor | None


def rk_step_adjoint(dynamics, tableau, t, h, stage, adjoints, sums, variables=(), with_time=False):
    """The symplectic partner of `rk_step`, from lambda_{n+1} to lambda_n.

    In the variables w_i = b_i Lambda_i of Matsubara, Miyatake and Yaguchi (arXiv:2102.09750) no
    case b_i = 0 has to be told apart:

        w_i = h (b_i lambda_{n+1} + sum_{j>i} a_ji l_j),   l_i = (df/dy(t_i, Y_i))^T w_i,
        lambda_n = lambda_{n+1} + sum_i l_i.

    The stages are a loop, so that no more than one stage's activations and gradients are alive,
    also under XLA, which would overlap what is written out.

    Args:
        dynamics: `ClosedDynamics`.
        tableau: `ButcherTableau` without a FSAL row.
        t: float64 scalar, the time before the step.
        h: float64 scalar.
        stage: callable from i, an int32 scalar, to the stage value Y_i, a list of tensors.
        adjoints: lambda_{n+1}, list of tensors.
        sums: list of tensors that the gradients are added to: see `StepGradients`.
        variables: variables to differentiate for beside `dynamics.captured`.
        with_time: whether the gradients for `t` and `h` are wanted.

    Returns:
        `StepGradients`.
    """
    order = [i for i in reversed(range(tableau.num_rows)) if tableau.active_stages[i]]
    count = len(order)
    stages = tf.constant(order, tf.int32)
    nodes = np.array([tableau.c[i] for i in order])
    ts = t + h * nodes
    rows = [[tableau.a[j][i] if i < j else 0.0 for i in order] for j in order]
    coupling = _as_factors(h * np.array(rows), adjoints)
    weights = _as_factors(h * np.array([tableau.b[i] for i in order]), adjoints)
    weights = [w * y for w, y in zip(weights, adjoints)]
    times = [tf.zeros([], tf.float64)] * 2 if with_time else []

    def body(k, cotangents, weights, sums, times):
        products, dt, captured, others, values = dynamics.vjp(
            tf.gather(ts, k),
            stage(tf.gather(stages, k)),
            cotangents,
            variables,
            with_values=with_time,
        )
        weights = [w + tf.gather(c, k) * x for w, c, x in zip(weights, coupling, products)]
        if with_time:
            dt = tf.zeros([], tf.float64) if dt is None else dt
            start, step = times
            # Not a chain of additions: see above.
            node = tf.gather(nodes, k)
            times = [start + dt, step - (-node * dt - inner(cotangents, values) / h)]
        # Taken from the rows after, not before they are changed: so XLA changes them in place.
        later = tf.minimum(k + 1, count - 1)
        sums = _add_terms(sums, [*products, *captured, *others])
        return k + 1, [tf.gather(w, later) for w in weights], weights, sums, times

    _, _, _, sums, times = tf.while_loop(
        lambda k, *_: k < count,
        body,
        (tf.zeros([], tf.int32), [w[0] for w in weights], weights, list(sums), times),
        parallel_iterations=1,
        maximum_iterations=count,
        name="adjoint_of_stages",
    )
    return StepGradients(sums, *(times or (None, None)))


def rk_step_vjp(dynamics, tableau, t, h, ys, adjoints, sums, variables=(), with_time=False):
    """`rk_step_adjoint` by back-propagation: all stages of a step under one tape.

    Args:
        ys: the state before the step, list of tensors.

    The other arguments and what is returned are those of `rk_step_adjoint`.
    """
    inputs = [*ys, *dynamics.captured, *variables, *([t, h] if with_time else [])]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        increments = rk_step(dynamics, tableau, t, h, ys).increments
    gradients = tape.gradient(increments, inputs, output_gradients=adjoints)
    start = step = None
    if with_time:
        *gradients, start, step = gradients
        start = tf.zeros([], tf.float64) if start is None else start
    return StepGradients(_add_terms(sums, gradients), start, step)


def two_sum(totals, lows):
    """Compensated summation (Kahan): adds up without losing the low parts of what is added.

    Args:
        totals: list of tensors, what has been added up so far.
        lows: what is to be added, the low parts of earlier sums included; of the same dtypes or
            more precise ones.

    Returns:
        `(totals, lows)`: the sums, and what rounding has kept from them, to be included the next
        time; constants for the derivative.
    """
    sums, rests = [], []
    for total, low in zip(totals, lows):
        new = tf.cast(tf.cast(total, low.dtype) + low, total.dtype)
        rest = low - (tf.cast(new, low.dtype) - tf.cast(total, low.dtype))
        sums.append(tf.ensure_shape(new, total.shape))
        rests.append(tf.stop_gradient(tf.ensure_shape(rest, total.shape)))
    return sums, rests


def _coefficients(h, row, ys):
    """h times a row of a tableau: `(index, per tensor of ys: scalar)`, zeros left out.

    The scalars are h a_1 for the first and -h a_j for the others, of the tensors' dtypes.
    """
    indices = [j for j, x in enumerate(row) if x != 0]
    if not indices:
        return []
    values = np.array([row[j] for j in indices], np.float64)
    values[1:] *= -1.0
    scaled = h * values
    by_dtype = {dtype: tf.unstack(tf.cast(scaled, dtype)) for dtype in {y.dtype for y in ys}}
    return [(j, [by_dtype[y.dtype][k] for y in ys]) for k, j in enumerate(indices)]


def _combine(coefficients, terms, like):
    """`sum_j c_j terms[j]` for coefficients of `_coefficients`; zeros if there are none."""
    if not coefficients:
        return [tf.zeros_like(y) for y in like]
    (j, scalars), *rest = coefficients
    total = [c * x for c, x in zip(scalars, terms[j])]
    for j, scalars in rest:
        total = [s - c * x for s, c, x in zip(total, scalars, terms[j])]
    return total


def _add(ys, increments):
    return [y + d for y, d in zip(ys, increments)]


def _as_factors(coefficients, ys):
    """Coefficients `[..., n]` per tensor, in its dtype and ready to be multiplied with it."""
    shape = coefficients.shape.as_list()
    return [tf.reshape(tf.cast(coefficients, y.dtype), [*shape, *[1] * y.shape.rank]) for y in ys]


def _add_terms(sums, terms):
    """`sums + terms`, where None stands for zero, in the dtypes and shapes of `sums`."""
    return [
        a if x is None else tf.ensure_shape(a + tf.cast(tf.convert_to_tensor(x), a.dtype), a.shape)
        for a, x in zip(sums, terms)
    ]


def inner(xs, ys):
    """Re sum conj(x) y over all tensors, float64."""
    total = tf.zeros([], tf.float64)
    for x, y in zip(xs, ys):
        total = total + tf.cast(tf.math.real(tf.reduce_sum(tf.math.conj(x) * y)), tf.float64)
    return total


def after(earlier, ys):
    """`ys`, in such a way that nothing computed from them can start before `earlier` is there.

    Graph mode obeys control dependencies. XLA drops them, so there the values themselves have to
    depend on `earlier`: a zero is added that the compiler can't know to be one, since it is NaN
    where `earlier` is not finite, as the gradient is then in any case.
    """
    zeros = [0.0 * tf.math.real(tf.reduce_sum(tf.reshape(e, [-1])[:1])) for e in earlier]
    zero = tf.zeros([], tf.float32)
    for x in zeros:
        zero = zero - tf.cast(x, tf.float32)
    with tf.control_dependencies(earlier):
        return [y + tf.cast(zero, y.dtype) for y in ys]

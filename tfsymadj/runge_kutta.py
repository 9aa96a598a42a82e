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
        adjoints: lambda_n - lambda_{n+1}, list of tensors.
        captured: for the captured inputs of the dynamics; None where there is nothing to add.
        variables: for the variables, likewise.
        start: dL/dt_n at fixed h, float64 scalar, or None.
        step: dL/dh, float64 scalar, or None.
    """

    adjoints: list
    captured: list
    variables: list
    start: tf.Tensor | None
    step: tf.Tensor | None


def rk_step_adjoint(dynamics, tableau, t, h, stage, adjoints, variables=(), with_time=False):
    """The symplectic partner of `rk_step`, from lambda_{n+1} to lambda_n.

    In the variables w_i = b_i Lambda_i of Matsubara, Miyatake and Yaguchi (arXiv:2102.09750) no
    case b_i = 0 has to be told apart:

        w_i = h (b_i lambda_{n+1} + sum_{j>i} a_ji l_j),   l_i = (df/dy(t_i, Y_i))^T w_i,
        lambda_n = lambda_{n+1} + sum_i l_i.

    Every sign is turned, w_i into -w_i and l_i into -l_i, so that all sums are subtractions.

    Args:
        dynamics: `ClosedDynamics`.
        tableau: `ButcherTableau` without a FSAL row.
        t: float64 scalar, the time before the step.
        h: float64 scalar.
        stage: callable from i to the stage value Y_i, a list of tensors.
        adjoints: lambda_{n+1}, list of tensors.
        variables: variables to differentiate for beside `dynamics.captured`.
        with_time: whether the gradients for `t` and `h` are wanted.

    Returns:
        `StepGradients`.
    """
    active = tableau.active_stages
    products = {}  # stage -> -l_i
    sums = [None] * (len(dynamics.captured) + len(variables))
    start = step = tf.zeros([], tf.float64)
    latest = adjoints
    for i in reversed(range(tableau.num_rows)):
        if not active[i]:
            continue
        later = [j for j in products if tableau.a[j][i] != 0]
        with tf.name_scope(f"adjoint_of_stage_{i + 1}"):
            row = _coefficients(h, [tableau.a[j][i] for j in later], adjoints)
            weights = _scale(_coefficients(-h, [tableau.b[i]], adjoints), adjoints)
            weights = _combine(row, [products[j] for j in later], adjoints, start=weights)
            # One stage's activations at a time: not even the evaluation starts before the
            # stage after this one is through.
            ys = after(latest, stage(i))
            products[i], dt, dcaptured, dvariables, values = dynamics.vjp(
                t + tableau.c[i] * h, ys, weights, variables, with_values=with_time
            )
            latest = products[i]
            sums = _subtract(h, sums, [*dcaptured, *dvariables])
        latest = [*latest, *(x for x in sums if x is not None)]
        if with_time:
            dt = tf.zeros([], tf.float64) if dt is None else dt
            start = start - dt
            step = step - (tableau.c[i] * dt + inner(weights, values) / h)
    return StepGradients(
        _minus_sum(list(products.values())),
        sums[: len(dynamics.captured)],
        sums[len(dynamics.captured) :],
        start if with_time else None,
        step if with_time else None,
    )


def rk_step_vjp(dynamics, tableau, t, h, ys, adjoints, variables=(), with_time=False):
    """`rk_step_adjoint` by back-propagation: all stages of a step under one tape.

    Args:
        ys: the state before the step, list of tensors.

    The other arguments and what is returned are those of `rk_step_adjoint`.
    """
    n, m = len(ys), len(ys) + len(dynamics.captured)
    inputs = [*ys, *dynamics.captured, *variables, *([t, h] if with_time else [])]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        increments = rk_step(dynamics, tableau, t, h, ys).increments
    gradients = tape.gradient(increments, inputs, output_gradients=adjoints)
    gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    start = step = None
    if with_time:
        *gradients, start, step = gradients
        start = tf.zeros([], tf.float64) if start is None else start
    return StepGradients(gradients[:n], gradients[n:m], gradients[m:], start, step)


def add(totals, errors, terms):
    """Compensated summation (Kahan): adds terms to running totals without losing their low parts.

    Args:
        totals: list of tensors.
        errors: what rounding has added to them too much so far, zeros at first; constants for the
            derivative.
        terms: list of tensors or None, of any dtypes.

    Returns:
        `(totals, errors)`.
    """
    results = []
    for total, error, term in zip(totals, errors, terms):
        if term is not None:
            missing = tf.cast(term, total.dtype) - error
            new = tf.ensure_shape(total + missing, total.shape)
            error = tf.stop_gradient(tf.ensure_shape((new - total) - missing, total.shape))
            total = new
        results.append((total, error))
    return [total for total, _ in results], [error for _, error in results]


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


def _scale(coefficients, ys):
    """The first term of a sum; zeros if it has none."""
    if not coefficients:
        return [tf.zeros_like(y) for y in ys]
    _, scalars = coefficients[0]
    return [c * y for c, y in zip(scalars, ys)]


def _combine(coefficients, terms, like, start=None):
    """`start + sum_j c_j terms[j]` for coefficients of `_coefficients`."""
    if not coefficients:
        return [tf.zeros_like(y) for y in like] if start is None else start
    (j, scalars), *rest = coefficients
    if start is None:
        total = [c * x for c, x in zip(scalars, terms[j])]
    else:
        total = [s - (-c) * x for s, c, x in zip(start, scalars, terms[j])]
    for j, scalars in rest:
        total = [s - c * x for s, c, x in zip(total, scalars, terms[j])]
    return total


def _add(ys, increments):
    return [y + d for y, d in zip(ys, increments)]


def _minus_sum(rows):
    """Minus the sum of lists of tensors, entry by entry; None stands for zero."""
    totals = []
    for terms in zip(*rows):
        first, *others = [x for x in terms if x is not None] or [None]
        total = None if first is None else -_accumulable(first)
        for x in others:
            total = total - _accumulable(x)
        totals.append(total)
    return totals


def _subtract(h, totals, terms):
    """`totals - terms`, entry by entry, at once: not when other terms are there as well.

    None stands for zero.
    """
    terms = [None if x is None else _accumulable(x) for x in terms]
    both = [k for k, x in enumerate(terms) if x is not None and totals[k] is not None]
    results = [a if x is None else -x for a, x in zip(totals, terms)]
    if both:
        # XLA would put off all subtractions from one total and do them in one go, with the
        # gradients of all stages in memory; it does not look into a branch. h is never zero.
        sums = tf.cond(
            tf.not_equal(h, 0.0),
            lambda: [totals[k] - terms[k] for k in both],
            lambda: [totals[k] for k in both],
        )
        for k, total in zip(both, tf.nest.flatten(sums)):  # a list of one is not kept
            results[k] = total
    return results


def _accumulable(x):
    """Sums are never in half precision."""
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


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

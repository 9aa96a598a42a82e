"""The solver for TensorFlow Probability's FFJORD."""

import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from helpers.flows import Field, Weighted, normal, points
from helpers.gradients import relative_error
from helpers.modes import MODES, partly_slow, run, slow

from tfsymadj.bijectors import CNF, ode_solve_fn

tfb, tfd = tfp.bijectors, tfp.distributions
FIXED = dict(method="heun", num_steps=3)


@pytest.mark.parametrize("mode", partly_slow(MODES, "eager", "xla"))
def test_ode_solve_fn_in_ffjord(mode):
    """Against `CNF` over the same steps; FFJORD's own inverse is right where time starts at 0."""
    field, x = Field(), points(4, 3)
    # TensorFlow Probability's exact trace does not compile under XLA.
    exact = mode != "xla"
    traces = {"trace_augmentation_fn": tfb.ffjord.trace_jacobian_exact} if exact else {}
    ffjord = tfb.FFJORD(field, ode_solve_fn=ode_solve_fn(**FIXED), dtype=tf.float64, **traces)
    flow = CNF(field, **FIXED)

    def compute(bijector):
        with tf.GradientTape() as tape:
            value = bijector.forward(x)
            total = tf.reduce_sum(value**2)
            if exact:
                total += tf.reduce_sum(bijector.forward_log_det_jacobian(x, event_ndims=1))
        return value, *tape.gradient(total, field.trainable_variables)

    for a, b in zip(run(lambda: compute(ffjord), mode), compute(flow)):
        assert relative_error(a, b) < 1e-12


EULER = dict(method="euler", num_steps=2)


def make_ffjord(field, **options):
    return tfb.FFJORD(
        field,
        ode_solve_fn=ode_solve_fn(**EULER),
        trace_augmentation_fn=tfb.ffjord.trace_jacobian_exact,
        dtype=tf.float64,
        **options,
    )


@pytest.mark.parametrize("wrap", [slow(lambda flow: flow), lambda flow: tfb.Chain([flow])])
def test_ffjord_gives_no_old_answer(wrap):
    field, x = Weighted(), points(4, 3)
    flow = wrap(make_ffjord(field))
    for call in (flow.forward, lambda x: flow.inverse_log_det_jacobian(x, event_ndims=1)):
        old = call(x)
        field.w.assign(0.5 * field.w)
        with tf.GradientTape() as tape:
            new = call(x)
        assert tape.gradient(new, field.w) is not None
        assert relative_error(new, old) > 1e-6
        assert relative_error(new, call(tf.identity(x))) < 1e-12


def test_conditions_of_ffjord():
    """TensorFlow Probability takes the log-determinant of another condition."""
    field, x = Weighted(), points(4, 3)
    flow = make_ffjord(field)
    for shift in (0.0, 0.5):
        shift = tf.constant(shift, tf.float64)
        found = flow.forward_log_det_jacobian(x, event_ndims=1, shift=shift)
        expected = CNF(field, **EULER).forward_log_det_jacobian(x, condition=shift)
        assert relative_error(found, expected) < 1e-12


def test_one_solve_of_ffjord(monkeypatch):
    flow, calls = make_ffjord(Weighted()), []
    solver = flow.parameters["ode_solve_fn"]
    plain = type(solver).__call__
    monkeypatch.setattr(
        type(solver), "__call__", lambda self, *a, **k: (calls.append(1), plain(self, *a, **k))[1]
    )
    distribution = tfd.TransformedDistribution(normal(), flow)
    distribution.log_prob(points(4, 3))
    assert len(calls) == 1
    distribution.log_prob(distribution.sample(4))
    assert len(calls) == 2

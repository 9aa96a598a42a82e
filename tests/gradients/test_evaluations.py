"""How often the dynamics are evaluated, forward and backward."""

import numpy as np
import pytest
from helpers.gradients import counts
from helpers.modes import slow

from tfsymadj import METHODS, ButcherTableau, StepCheckpoint, SymplecticAdjoint


@pytest.mark.parametrize(
    "method, checkpoints",
    [
        ("euler", "sqrt"),
        ("rk4", "sqrt"),
        ("rk4", "steps"),
        ("rk4", "stages"),
        ("dopri5", "sqrt"),
        slow("bosh3", "sqrt"),
        slow("dopri8", "sqrt"),
        slow("dopri8", "stages"),
    ],
)
def test_evaluations_of_fixed_steps(method, checkpoints):
    n, s = 2 * 9, METHODS[method].stages
    forward, backward, vjps, stats = counts(
        SymplecticAdjoint(checkpoints), method=method, num_steps=9
    )
    assert forward == stats.num_evaluations == n * s
    assert vjps == n * s
    planned = n * s if checkpoints == "stages" else 2 * n * s
    assert stats.num_backward_evaluations == planned
    # In the last step of a segment no evaluation has a use that no later stage depends on.
    a = METHODS[method].without_error().a_matrix
    unused = int(np.sum(~np.any(a != 0, axis=0)))
    assert planned - n * unused <= backward <= planned


MAX_STEPS = 24  # so that some steps of some solves are recomputed


@pytest.mark.parametrize("method", ["bosh3", "dopri5", slow("fehlberg45")])
@pytest.mark.parametrize("tolerance", [1e-3, slow(1e-4)])
def test_evaluations_of_adaptive_steps(method, tolerance):
    s = METHODS[method].stages
    options = dict(
        method=method, rtol=tolerance, atol=tolerance, first_step=1.0, max_steps=MAX_STEPS,
        outputs="step",
    )  # fmt: skip
    forward, backward, vjps, stats = counts(SymplecticAdjoint("sqrt"), **options)
    assert stats.num_steps == stats.num_accepted + stats.num_rejected
    assert forward <= stats.num_evaluations <= stats.num_steps * s + 2
    # FSAL: the evaluation at the end of the last step is not used if nothing follows.
    assert forward >= stats.num_steps * s
    assert vjps == stats.num_accepted * s
    # The stage values of the last steps are kept.
    kept = min(round(np.sqrt(MAX_STEPS / s)), stats.num_accepted)
    assert backward <= stats.num_backward_evaluations == (2 * stats.num_accepted - kept) * s


def test_rejected_steps_cost_nothing_backward():
    options = dict(method="dopri5", rtol=1e-8, atol=1e-8, first_step=2.0)
    _, backward, _, stats = counts(SymplecticAdjoint("sqrt"), **options)
    assert stats.num_rejected > 0
    assert backward <= 2 * stats.num_accepted * 6


def test_stages_of_weight_zero_cost_no_vjp():
    # Two rows, the second one useless, would be Euler's method with a FSAL row.
    useless = ButcherTableau(
        name="useless", order=1, c=(0, 1 / 2, 1 / 3), a=((), (1 / 2,), (1 / 3, 0)), b=(1, 0, 0)
    )
    assert useless.active_stages == (True, False, False)
    forward, backward, vjps, stats = counts(SymplecticAdjoint("sqrt"), method=useless, num_steps=10)
    assert forward <= 20 * 3
    assert vjps == 20
    assert backward <= stats.num_backward_evaluations == 20 * (3 + 1)


@pytest.mark.parametrize(
    "gradient",
    [
        SymplecticAdjoint("sqrt"),
        SymplecticAdjoint("steps"),
        slow(SymplecticAdjoint("stages")),
        slow(SymplecticAdjoint(20)),
        slow(StepCheckpoint()),
    ],
    ids=str,
)
@pytest.mark.parametrize("tolerance", [1e-4, slow(1e-10)])
def test_rows_of_the_extension_are_evaluated_where_outputs_are(gradient, tolerance):
    options = dict(method="dop853", rtol=tolerance, atol=tolerance, max_steps=24, outputs="auto")
    forward, backward, vjps, stats = counts(gradient, **options)
    # One of the steps has the only output inside.
    assert forward == stats.num_evaluations == 2 + 12 * stats.num_steps + 3
    # Its last slope is differentiated beside those of the rows.
    assert vjps == 12 * stats.num_accepted + 4
    assert backward == stats.num_backward_evaluations


@pytest.mark.slow
def test_dopri5_has_no_vjp_for_its_seventh_row():
    options = dict(method="dopri5", rtol=1e-5, atol=1e-5)
    _, _, vjps, stats = counts(SymplecticAdjoint("sqrt"), outputs="step", **options)
    assert vjps == 6 * stats.num_accepted
    # But at the very end, for outputs inside of the last step.
    _, _, vjps, stats = counts(SymplecticAdjoint("sqrt"), outputs="interpolate", **options)
    assert vjps == 6 * stats.num_accepted + 1

"""Tables: what they derive, and the errors that they find."""

import dataclasses
import math
import pickle
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.tableaus import GOOD

from tfsymadj.methods import METHODS, ButcherTableau, tables

IMPLICIT = ("trbdf2", "kvaerno3", "kvaerno5", "kencarp4", "radau5", "implicit_midpoint", "gauss4")
ALL = [pytest.param(tableau, id=name) for name, tableau in METHODS.items()]


def two_stages(alpha):
    """Coefficients of the family of all methods of two stages and order 2."""
    return dict(c=(0, alpha), a=((), (alpha,)), b=(1 - 1 / (2 * alpha), 1 / (2 * alpha)))


@pytest.mark.parametrize("tableau", ALL)
def test_without_error(tableau):
    reduced = tableau.without_error()
    assert reduced is tableau.without_error()
    assert reduced is reduced.without_error()
    assert not reduced.adaptive and not reduced.fsal
    assert reduced.embedded_order is None
    assert reduced.num_rows == reduced.stages == tableau.stages
    assert (reduced.name, reduced.order) == (tableau.name, tableau.order)
    assert reduced.b == tableau.b[: tableau.stages]
    assert reduced.active_stages == tableau.active_stages
    if not tableau.adaptive:
        assert reduced is tableau


def test_inactive_stages():
    # The third stage serves the error estimate alone, the second serves the third alone.
    tableau = ButcherTableau(
        name="mine",
        order=1,
        c=(0, 1 / 2, 1 / 2, 1 / 4),
        a=((), (1 / 2,), (0, 1 / 2), (1 / 4, 0, 0)),
        b=(1 / 2, 0, 0, 1 / 2),
        b_error=(1 / 2, 0, -1, 1 / 2),
    )
    assert tableau.active_stages == (True, False, False, True)
    assert tableau.without_error().num_rows == 4
    # A stage without a weight of its own is active if a later one uses it.
    assert tables.MIDPOINT.b[0] == 0 and tables.MIDPOINT.active_stages[0]


def test_fsal_without_error_estimate():
    tableau = ButcherTableau(
        name="mine", order=2, c=(0, 1, 1), a=((), (1,), (0.5, 0.5)), b=(0.5, 0.5, 0)
    )
    assert tableau.fsal and tableau.stages == 2 and not tableau.adaptive
    assert tableau.without_error() == dataclasses.replace(tables.HEUN, name="mine")


@pytest.mark.parametrize("tableau", ALL)
def test_arrays(tableau):
    s = len(tableau.a)
    assert s == tableau.num_rows + tableau.extension
    arrays = [tableau.a_matrix, tableau.b_vector, tableau.c_vector]
    assert [x.shape for x in arrays] == [(s, s), (s,), (s,)]
    lower = np.array_equal(tableau.a_matrix, np.tril(tableau.a_matrix, -1))
    assert lower == tableau.explicit == (tableau.name not in IMPLICIT)
    if tableau.adaptive:
        arrays.append(tableau.error_vector)
    else:
        assert tableau.error_vector is None
    for array in arrays:
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_immutable_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tables.RK4.order = 5
    again = ButcherTableau(**GOOD)
    assert again == ButcherTableau(**GOOD) != dataclasses.replace(again, name="yours")
    assert {again: 1}[ButcherTableau(**GOOD)] == 1
    assert len(set(METHODS.values())) == len(METHODS)
    assert pickle.loads(pickle.dumps(tables.DOPRI5)) == tables.DOPRI5
    assert ButcherTableau(**dataclasses.asdict(tables.DOPRI8)) == tables.DOPRI8


def test_repr():
    assert repr(tables.DOPRI5) == "<ButcherTableau dopri5: order 5(4), 6 evaluations a step>"
    assert repr(tables.DOP853) == "<ButcherTableau dop853: order 8(5,3), 12 evaluations a step>"
    assert repr(tables.EULER) == "<ButcherTableau euler: order 1, 1 evaluations a step>"


def test_kinds_of_numbers():
    half, one = Fraction(1, 2), np.float64(1.0)
    tableau = ButcherTableau(
        name="mine", order=np.int64(2), c=[0, 1], a=[[], [one]], b=np.array([0.5, 0.5])
    )
    assert tableau == ButcherTableau(name="mine", order=2, c=(0, 1), a=((), (1,)), b=(half, half))
    coefficients = (*tableau.c, *tableau.a[1], *tableau.b)
    assert {type(x) for x in coefficients} == {float}
    assert type(tableau.order) is int


def test_zeros_at_the_ends_of_rows():
    square = np.array([[0, 0, 0], [1 / 2, 0, 0], [-1, 2, 0]])
    rk3 = dict(name="mine", order=3, c=(0, 1 / 2, 1), b=(1 / 6, 2 / 3, 1 / 6))
    tableau = ButcherTableau(**rk3, a=square)
    assert tableau == ButcherTableau(**rk3, a=((), (1 / 2,), (-1, 2)))
    assert tableau.explicit and tableau.blocks == (range(1), range(1, 2), range(2, 3))


def test_rows_of_implicit_methods():
    midpoint = tables.IMPLICIT_MIDPOINT
    assert not midpoint.explicit and midpoint.blocks == (range(1),)
    assert tables.GAUSS4.blocks == (range(2),)
    assert tables.GAUSS4.with_interpolant().blocks == (range(1), range(1, 3), range(3, 4))
    assert tables.KVAERNO3.stiffly_accurate and not tables.GAUSS4.stiffly_accurate
    with pytest.raises(ValueError, match="`a` must not have rows beyond `b` with an implicit"):
        ButcherTableau(name="mine", order=1, c=(1, 0), a=((1,), (0,)), b=(1,), dense=((1,), (0,)))


def test_default_embedded_order():
    without = {key: value for key, value in GOOD.items() if key != "embedded_order"}
    assert ButcherTableau(**without).embedded_order == 1
    assert ButcherTableau(**(without | {"order": 1})).embedded_order == 1


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"name": 1}, TypeError, "`name` must be a string"),
        ({"order": 2.0}, TypeError, "`order` must be an integer"),
        ({"order": True}, TypeError, "`order` must be an integer"),
        ({"order": 0}, ValueError, "`order` must be from 1 to 10"),
        ({"order": 11}, ValueError, "`order` must be from 1 to 10"),
        ({"embedded_order": "1"}, TypeError, "`embedded_order` must be an integer"),
        ({"embedded_order": 0}, ValueError, "`embedded_order` must be from 1 to 10"),
        ({"b_error": None}, ValueError, "`embedded_order` must not be given without `b_error`"),
        ({"c": 1.0}, TypeError, "`c` must be a tuple, a list or an array"),
        ({"b": "ab"}, TypeError, "`b` must be a tuple, a list or an array"),
        ({"b": np.array(1.0)}, TypeError, "`b` must be a tuple, a list or an array"),
        ({"a": (0, 1)}, TypeError, r"`a\[0\]` must be a tuple, a list or an array"),
        ({"a": ((), ("1",))}, TypeError, r"`a\[1\]` must hold integers, floats or fractions"),
        ({"b": (0.5, 0.5j)}, TypeError, "`b` must hold integers, floats or fractions"),
        ({"b": (False, True)}, TypeError, "`b` must hold integers, floats or fractions"),
        ({"b": (math.nan, 0.5)}, ValueError, "`b` must be finite"),
        ({"c": (0, math.inf)}, ValueError, "`c` must be finite"),
        ({"b_error": (10**400, 0)}, ValueError, "`b_error` must be finite"),
        ({"b": ()}, ValueError, "`b` must have an entry for each stage"),
        ({"b": (1,)}, ValueError, "`c` must have 1 entries"),
        ({"c": (0, 1, 1)}, ValueError, "`c` must have 2 entries"),
        ({"a": ((),)}, ValueError, "`a` must have 2 entries"),
        ({"b_error": (0.5, -0.5, 0)}, ValueError, "`b_error` must have 2 entries"),
        ({"a": ((), ())}, ValueError, r"`a\[1\]` must have 1 entries, left of the diagonal"),
        ({"a": ((), (1, 0, 1))}, ValueError, r"`a\[1\]` must have 1 .* no more than the 2 stages"),
        (
            {"c": (1, 0), "a": ((0.5, 0.5), (0, 0))},
            ValueError,
            "`a` must be regular in stages 0 to 1",
        ),
        ({"c": (0, 0.75)}, ValueError, r"`a\[1\]` must sum to `c\[1\]`"),
        ({"c": (0.5, 1)}, ValueError, r"`a\[0\]` must sum to `c\[0\]`"),
        ({"b_error": (0, 0)}, ValueError, "`b_error` must not be all zeros"),
        ({"b_error": (-0.5, 0.4)}, ValueError, "`b_error` must sum to zero"),
        ({"b": (0.5, 0.4)}, ValueError, r"sum\(b\) = 1 of order 1 is violated by -0.1"),
        ({"b": (0.25, 0.75)}, ValueError, "b @ c = 1/2 of order 2 is violated by 0.25"),
        ({"order": 3}, ValueError, r"b @ \(c \* c\) = 1/3 of order 3 is violated by 0.167"),
        ({"embedded_order": 2}, ValueError, "`b - b_error` are not of order 2: .* by -0.5"),
        ({"coarse_order": 1}, ValueError, "`coarse_order` must not be given without `b_coarse`"),
        ({"b_coarse": (1, 0)}, ValueError, "`b_coarse` must sum to zero"),
        ({"b_coarse": (0, 0)}, ValueError, "`b_coarse` must not be all zeros"),
        ({"b_coarse": (1,)}, ValueError, "`b_coarse` must have 2 entries"),
        ({"b_coarse": (1, -1), "coarse_order": 2}, ValueError, "`b - b_coarse` are not of order 2"),
    ],
)
def test_errors(changes, error, message):
    ButcherTableau(**GOOD)
    with pytest.raises(error, match=f"(?s){message}.*Received: "):
        ButcherTableau(**(GOOD | changes))


def test_a_coarse_estimate_goes_with_a_finer_one():
    without = {name: GOOD[name] for name in ("name", "order", "c", "a", "b")}
    with pytest.raises(ValueError, match="`b_coarse` must not be given without `b_error`"):
        ButcherTableau(**without, b_coarse=(1, -1))
    assert ButcherTableau(**GOOD, b_coarse=(1, -1)).coarse_order == 1


def test_error_names_the_tree():
    changed = {"b": (1 / 8, 3 / 8, 3 / 8, 1 / 8), "order": 5}
    with pytest.raises(ValueError, match=r"not of order 5.*Received: order=5"):
        dataclasses.replace(tables.RK38, **changed)
    # Row sums, and the conditions of orders 1 and 2, are kept.
    rows = ((), (1 / 2,), (1 / 4, 1 / 4), (0, 0, 1))
    with pytest.raises(ValueError, match=r"b @ \(A @ c\) = 1/6 of order 3 is violated by -0.04"):
        dataclasses.replace(tables.RK4, a=rows)


@hypothesis.given(st.floats(1e-3, 1e3), st.booleans())
def test_family_of_order_two(alpha, negative):
    alpha = -alpha if negative else alpha
    tableau = ButcherTableau(name="mine", order=2, **two_stages(alpha))
    assert tableau.stages == 2 and tableau.c == (0.0, alpha)
    # Against the step written out.
    value = tableau.b_vector @ (1 + 0.1 * tableau.a_matrix @ np.ones(2)) * 0.1
    np.testing.assert_allclose(value, 0.1 + 0.1**2 / 2, rtol=1e-9)


@hypothesis.given(
    st.floats(0.1, 10.0),
    st.sampled_from([-1.0, 1.0]),
    st.floats(1e-10, 1.0),
    st.sampled_from(["c", "a", "b0", "b1", "both"]),
)
def test_perturbed_family_is_refused(alpha, sign, size, where):
    method = two_stages(alpha)
    change = sign * size
    if where == "c":
        method["c"] = (0, alpha + change)
    elif where == "a":
        method["a"] = ((), (alpha + change,))
    elif where == "b0":
        method["b"] = (method["b"][0] + change, method["b"][1])
    elif where == "b1":
        method["b"] = (method["b"][0], method["b"][1] + change)
    else:  # consistent, but of order one only
        method["b"] = (method["b"][0] - change, method["b"][1] + change)
        ButcherTableau(name="mine", order=1, **method)
    with pytest.raises(ValueError, match="Received: "):
        ButcherTableau(name="mine", order=2, **method)


@pytest.mark.parametrize("tableau", ALL)
def test_any_wrong_coefficient_is_found(tableau):
    """Row sums kept, so that the order conditions have to find it."""
    fields = {field.name: getattr(tableau, field.name) for field in dataclasses.fields(tableau)}
    for i in (*range(tableau.stages), *range(tableau.num_rows, len(tableau.a))):
        for j in range(i):
            nodes, rows = list(tableau.c), [list(row) for row in tableau.a]
            rows[i][j] += 1e-7
            nodes[i] += 1e-7
            with pytest.raises(ValueError, match="violated|must sum"):
                ButcherTableau(**(fields | {"c": nodes, "a": rows}))

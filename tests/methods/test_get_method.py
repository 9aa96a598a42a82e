"""Methods by name."""

import pytest
from helpers.tableaus import GOOD

from tfsymadj.methods import METHODS, ButcherTableau, get_method


def test_get_method():
    for name, tableau in METHODS.items():
        method = get_method(name)
        assert method.tableau is tableau
        assert get_method(tableau) is get_method(method) is method
    mine = ButcherTableau(**GOOD)
    assert get_method(mine).tableau is mine


@pytest.mark.parametrize("method", ["DOPRI5", "rk5", ""])
def test_unknown_method(method):
    with pytest.raises(ValueError, match=f"one of euler, .*, yoshida4. Received: '{method}'"):
        get_method(method)


@pytest.mark.parametrize("method", [None, 4, ["rk4"], ButcherTableau])
def test_method_of_wrong_type(method):
    with pytest.raises(TypeError, match="`method` must be a name or a `ButcherTableau`. Received"):
        get_method(method)

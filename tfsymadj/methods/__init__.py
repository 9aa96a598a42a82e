"""One step and its partner: `METHODS` names the tables, `get_method` makes them steps."""

import functools

from tfsymadj.methods.implicit import ImplicitRungeKutta
from tfsymadj.methods.method import Method
from tfsymadj.methods.newton import Newton
from tfsymadj.methods.runge_kutta import ExplicitRungeKutta
from tfsymadj.methods.splitting import SPLITTINGS, Splitting, compose
from tfsymadj.methods.tableaus import ButcherTableau
from tfsymadj.methods.tables import METHODS

__all__ = [
    "METHODS",
    "ButcherTableau",
    "ExplicitRungeKutta",
    "ImplicitRungeKutta",
    "Method",
    "Newton",
    "SPLITTINGS",
    "Splitting",
    "compose",
    "get_method",
]


def get_method(method: str | ButcherTableau | Method) -> Method:
    """The `Method` of a name in `METHODS` or `SPLITTINGS`, of a `ButcherTableau`, or of a `Method`.

    Raises:
        TypeError: if `method` is none of these.
        ValueError: if there is no method of that name.

    Example:

    >>> from tfsymadj import methods
    >>> methods.get_method("dopri5").stages
    6
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, ButcherTableau):
        return _of_tableau(method)
    if not isinstance(method, str):
        raise TypeError(
            f"`method` must be a name or a `ButcherTableau`. Received: {method!r} "
            f"(of type {type(method).__name__})"
        )
    if method in SPLITTINGS:
        return SPLITTINGS[method]
    if method not in METHODS:
        names = ", ".join([*METHODS, *SPLITTINGS])
        raise ValueError(f"`method` must be one of {names}. Received: {method!r}")
    return _of_tableau(METHODS[method])


@functools.lru_cache(maxsize=256)
def _of_tableau(tableau):
    return (ExplicitRungeKutta if tableau.explicit else ImplicitRungeKutta)(tableau)

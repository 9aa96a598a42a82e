"""The options: declared once, and the same wherever they are taken."""

import dataclasses
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj import ConstantSteps, PIController
from tfsymadj.bijectors import CNF, ode_solve_fn
from tfsymadj.options import DEFAULTS, Options, SolverOptions, documented, with_options

#: What takes options, and the name that its errors give.
TAKERS = {
    "solve": tfsymadj.solve,
    "odeint": tfsymadj.odeint,
    "ODELayer": tfsymadj.ODELayer,
    "CNF": CNF,
    "ode_solve_fn": ode_solve_fn,
}
EACH = pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS)


def entries():
    """The documentation of each option, by name, in one line."""
    text = inspect.getdoc(Options).split("Args:\n")[1]
    found = {}
    for entry in re.split(r"\n(?= {4}\w)", text):
        name, _, rest = entry.strip().partition(": ")
        found[name] = f"{name}: {' '.join(rest.split())}"
    return found


def test_defaults():
    options = Options()
    assert options.get_config() == DEFAULTS
    assert options.changed == {}
    assert repr(options) == "Options()"
    assert DEFAULTS["method"] == "dopri5" and DEFAULTS["gradient"] == "symplectic_adjoint"
    solver = options.solver(tf.constant([0.0, 1.0]))
    assert solver.method.name == "dopri5"
    assert solver.controller == PIController(1e-3, 1e-6).for_method(solver.method)
    assert (solver.first_step, solver.min_step, solver.max_steps) == (None, 0.0, 4096)


def test_types_are_those_of_the_fields():
    fields = [field.name for field in dataclasses.fields(Options) if field.init]
    assert list(SolverOptions.__annotations__) == fields == list(DEFAULTS)
    assert list(entries()) == fields


@EACH
def test_signatures_have_every_option(taker):
    parameters = inspect.signature(taker).parameters
    for name, default in DEFAULTS.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is default
    assert "options" not in parameters


@EACH
def test_docstrings_have_every_option_once(taker):
    text = " ".join(taker.__doc__.split())
    for name, entry in entries().items():
        assert text.count(entry) == 1, name
    assert "**options" not in text


@pytest.mark.parametrize("name", ["solve", "odeint"])
def test_unknown_options(name):
    with pytest.raises(TypeError, match=rf"{name}\(\).* 'metod'; did you mean `method`\?$"):
        TAKERS[name](lambda t, y: -y, [1.0], [0.0, 1.0], metod="rk4")
    with pytest.raises(TypeError, match=rf"{name}\(\).* 'colour'$"):
        TAKERS[name](lambda t, y: -y, [1.0], [0.0, 1.0], colour="red")


def test_unknown_options_of_classes():
    with pytest.raises(TypeError, match=r"CNF\(\).* 'num_step'; did you mean `num_steps`\?"):
        CNF(lambda t, y: -y, num_step=3)
    with pytest.raises(TypeError, match=r"ode_solve_fn\(\).* 'rtoll'; did you mean `rtol`\?"):
        ode_solve_fn(rtoll=1e-3)


SAME = [
    (dict(), dict()),
    (dict(), dict(method="dopri5", rtol=1e-3, max_steps=4096)),
    (dict(rtol=1e-4), dict(rtol=1e-4)),
    (dict(method="rk4", num_steps=3), dict(method="rk4", num_steps=3)),
    (dict(rtol=np.full(2, 1e-4)), dict(rtol=np.full(2, 1e-4))),
    (dict(controller=PIController(1e-5)), dict(controller=PIController(1e-5))),
]
DIFFERENT = [
    dict(),
    dict(rtol=1e-4),
    dict(method="bosh3"),
    dict(num_steps=3),
    dict(step_size=3.0),
    dict(controller=ConstantSteps(3)),
    dict(gradient="backprop"),
    dict(max_steps=7),
    dict(autonomous=True),
    dict(autonomous=False),
    dict(on_failure="status"),
    dict(first_step=0.1),
    dict(min_step=0.1),
]


@pytest.mark.parametrize("first, second", SAME)
def test_equal_options(first, second):
    a, b = Options(**first), Options(**second)
    assert a == b and hash(a) == hash(b) and repr(a) == repr(b)
    assert Options.from_config(a.get_config()) == a


def test_unequal_options():
    made = [Options(**options) for options in DIFFERENT]
    for i, a in enumerate(made):
        assert [a == b for b in made] == [i == j for j in range(len(made))]
    assert len(set(made)) == len(made)
    assert Options() != DEFAULTS


def test_options_tell_what_was_changed():
    options = Options(method="rk4", num_steps=3, rtol=1e-3)
    assert options.changed == {"method": "rk4", "num_steps": 3}
    assert repr(options) == "Options(method='rk4', num_steps=3)"
    assert Options(rtol=np.full(2, 1e-3)).changed["rtol"].shape == (2,)


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().rtol = 1e-4
    with pytest.raises(TypeError):
        Options("rk4")


def test_what_stands_for_the_options():
    times = tf.constant([0.0, 1.0, 2.0])
    solver = Options(method="dopri5", num_steps=3).solver(times)
    assert solver.controller == ConstantSteps(3)
    assert not solver.method.adaptive  # nobody asks for its error
    with pytest.raises(ValueError, match="`max_steps`.*Received: max_steps=1 and 3 entries"):
        Options(max_steps=1, outputs="step").solver(times)
    with tfsymadj.no_gradient():
        assert isinstance(Options().solver(times).gradient, tfsymadj.NoGradient)


def example(x, *, other=3, **options):
    """Does something.

    Args:
        x: a number.
        **options: those
            of `Options`.
        other: another.
    """


PLAIN = inspect.getdoc(example)


def has_all_entries(text):
    text = " ".join(text.split())
    once = all(text.count(entry) == 1 for entry in entries().values())
    return once and text.endswith("other: another.") and "those of" not in text


def test_functions_that_take_options():
    described = documented(with_options(example))
    assert list(inspect.signature(described).parameters) == ["x", "other", *DEFAULTS]
    assert has_all_entries(described.__doc__)


def test_docstrings_without_the_indentation_of_the_source(monkeypatch):
    class Described:
        __doc__ = PLAIN

    monkeypatch.setattr(Options, "__doc__", inspect.cleandoc(Options.__doc__))
    assert has_all_entries(documented(Described).__doc__)


def test_other_keywords_stay():
    @with_options
    def function(x, **kwargs):
        pass

    assert list(inspect.signature(function).parameters) == ["x", *DEFAULTS, "kwargs"]

import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from helpers.modes import partly_slow, slow

README = pathlib.Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"
#: Pages that take more than a few seconds.
LONG = {
    *("api/flows.md", "api/solving.md", "coming_from.md", "controls.md", "events.md", "flows.md"),
    *("CONTRIBUTING.md", "outputs.md"),
    *("gradients.md", "implicit.md", "index.md", "keras.md", "methods.md", "recipes.md"),
    *("sensitivities.md", "speed.md"),
}
PAGES = {
    "CONTRIBUTING.md": README.parent / "CONTRIBUTING.md",
    **{path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))},
}
#: Modules whose examples take as long, or whose ways are those of another one's.
LONG_MODULES = {
    *("bijectors.discrete", "bijectors.ode_solve_fn", "bijectors.traces", "callbacks"),
    *("gradients.backprop", "gradients.no_gradient", "gradients.reversible"),
    *("layers.cde_layers", "layers.energy_layers", "methods.splitting", "sensitivities"),
}
MODULES = [
    "bijectors.cnf",
    "bijectors.discrete",
    "bijectors.ode_solve_fn",
    "bijectors.traces",
    "callbacks",
    "controls",
    "dynamics.split",
    "events.event",
    "gradients.backprop",
    "gradients.no_gradient",
    "gradients.reversible",
    "gradients.symplectic_adjoint",
    "layers.cde_layers",
    "layers.energy_layers",
    "layers.ode_layer",
    "layers.time_layers",
    "methods",
    "methods.newton",
    "methods.order_conditions",
    "methods.splitting",
    "methods.tableaus",
    "sensitivities",
    "solve",
    "steady_state",
    "steps.given",
    "steps.pi",
]


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_readme():
    [block] = blocks_of(README)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "page",
    [slow(p, id=n) if n in LONG else pytest.param(p, id=n) for n, p in PAGES.items()],
)
def test_pages(page, monkeypatch, tmp_path):
    """A page's blocks run one after the other."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, block in enumerate(blocks_of(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_reliability_names_tests_that_exist():
    text = (README.parent / "docs" / "reliability.md").read_text()
    there = {path.name for path in (README.parent / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", text)) <= there


@pytest.mark.parametrize("name", partly_slow(MODULES, *LONG_MODULES))
def test_docstrings(name):
    importlib.import_module(f"tfsymadj.{name}")
    results = doctest.testmod(sys.modules[f"tfsymadj.{name}"])
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.slow
def test_imports_no_probability():
    code = "import sys, tfsymadj; sys.exit('tensorflow_probability' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=README.parent)

import doctest
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
MODULES = [
    "bijectors.cnf",
    "bijectors.discrete",
    "bijectors.ode_solve_fn",
    "bijectors.traces",
    "controllers",
    "gradients.backprop",
    "gradients.symplectic_adjoint",
    "layers.ode_layer",
    "layers.time_layers",
    "solve",
    "tableaus",
]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_readme(number):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    exec(compile(blocks[number], f"README.md, example {number}", "exec"), {})


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    importlib.import_module(f"tfsymadj.{name}")
    results = doctest.testmod(sys.modules[f"tfsymadj.{name}"])
    assert results.attempted > 0
    assert results.failed == 0


def test_imports_no_probability():
    code = "import sys, tfsymadj; sys.exit('tensorflow_probability' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=README.parent)

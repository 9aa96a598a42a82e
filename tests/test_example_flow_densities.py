"""`examples/flow_densities.py` runs as its readers run it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_flow_densities(tmp_path):
    script = ROOT / "examples" / "flow_densities.py"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, script, "--quick", "--density", "eight Gaussians", "--output", tmp_path],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )

    assert result.returncode == 0, result.stderr
    row = re.search(r"^eight Gaussians( .*\d)$", result.stdout, re.MULTILINE)
    values = [float(value) for value in row[1].replace("±", " ").split()]
    nll, entropy, difference, error, divergence, _, mass = values
    # The entropy of one of them, and which of the eight; they overlap by next to nothing.
    assert abs(entropy - 2.8114) < 1e-3
    assert abs(nll - entropy - difference) < 2e-4
    # Untrained it is about 2. No density is better than the true one.
    assert -4 * error < difference < 0.5
    assert 0 < divergence < 0.5
    assert abs(mass - 1) < 0.01
    assert (tmp_path / "flow_densities.png").stat().st_size > 10_000
    assert (tmp_path / "flow_densities.gif").stat().st_size > 10_000

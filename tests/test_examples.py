"""The examples run as their readers run them, those that take long with `--quick`."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run_example(name, *arguments, timeout=300):
    """What an example prints; it must end well."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def row(name, output):
    """The numbers in the line of a table that starts with a name."""
    found = re.search(rf"^ *{re.escape(name)} +([-\d].*\d)", output, re.MULTILINE)
    return [float(value) for value in found[1].replace("±", " ").split()]


def test_digits(tmp_path):
    output = run_example("digits.py", "--quick", "--out", tmp_path)

    assert "largest difference" in output
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert (tmp_path / "digits_model" / "saved_model.pb").exists()


@pytest.mark.slow
def test_flow_densities(tmp_path):
    output = run_example(
        "flow_densities.py", "--quick", "--density", "eight Gaussians", "--output", tmp_path
    )

    nll, entropy, difference, error, divergence, _, mass = row("eight Gaussians", output)
    # The entropy of one of them, and which of the eight; they overlap by next to nothing.
    assert abs(entropy - 2.8114) < 1e-3
    assert abs(nll - entropy - difference) < 2e-4
    # Untrained it is about 2. No density is better than the true one.
    assert -4 * error < difference < 0.5
    assert 0 < divergence < 0.5
    assert abs(mass - 1) < 0.01
    assert (tmp_path / "flow_densities.png").stat().st_size > 10_000
    assert (tmp_path / "flow_densities.gif").stat().st_size > 10_000


@pytest.mark.slow
def test_flow_tabular(tmp_path):
    """The script itself fails if the flow is not better than the Gaussian."""
    output = run_example("flow_tabular.py", "--quick", "--output", tmp_path)

    for table in ("breast cancer", "wine"):
        part = output[output.index(f"Held-out log-likelihood of {table}") :]
        gaussian, _ = row("Gaussian, full covariance", part)
        gain, _ = row("gain of the CNF", part)
        assert gain > 0
        assert -30 < gaussian < 0
    assert (tmp_path / "flow_tabular.png").stat().st_size > 10_000


@pytest.mark.slow
def test_flow_digits(tmp_path):
    output = run_example("flow_digits.py", "--quick", "--output", tmp_path)

    (gaussian, _), (flow, _), (gain, error) = (row(x, output) for x in ("Gaussian", "CNF", "gain"))
    assert abs(gaussian - flow - gain) < 2e-4
    assert gain > 2 * error
    assert 1.5 < flow < np.log2(17)
    assert (tmp_path / "flow_digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_flow_maf_tables(tmp_path):
    """On a small file of the published form; a second run goes on from the first one's end."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=[43, 43])
    (tmp_path / "miniboone").mkdir()
    np.save(tmp_path / "miniboone" / "data.npy", random.normal(size=[600, 43]) @ mixing)
    options = ["miniboone", "--folder", tmp_path, "--output", tmp_path / "out", "--hidden", 32]
    options += ["--batch", 100, "--every", 10, "--rtol", 1e-3, "--atol", 1e-3]
    first = run_example("flow_maf_tables.py", *options, "--steps", 20)
    second = run_example("flow_maf_tables.py", *options, "--steps", 40)

    assert "1 flows with hidden layers of [32]" in first
    assert "Goes on after 20 steps" in second
    (before, _), (after, _) = (row("Test log-likelihood", text) for text in (first, second))
    # A standard normal density, where it starts, gives -61 on average.
    assert before < after
    assert -75 < before < -40

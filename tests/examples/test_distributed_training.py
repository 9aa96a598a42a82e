"""Several workers, and the death of one."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}


def distributed(tmp_path, *arguments):
    """The losses of all epochs and what was printed."""
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "distributed_training.py", "--epochs", "3",
         "--output", tmp_path, *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    losses = {int(e): float(x) for e, x in re.findall(r"epoch (\d+): loss (\S+)", result.stdout)}
    assert sorted(losses) == [1, 2, 3]
    return np.array([losses[e] for e in (1, 2, 3)]), result.stdout


@pytest.mark.slow
def test_multi_worker_strategy_and_the_death_of_a_worker(tmp_path):
    one, _ = distributed(tmp_path / "one", "--workers", "1")
    two, output = distributed(tmp_path / "two", "--workers", "2")
    assert "with 2 workers" in output
    np.testing.assert_allclose(two, one, rtol=1e-4)
    # Twenty-one steps an epoch: in the middle of the second one.
    resumed, output = distributed(tmp_path / "died", "--workers", "2", "--fail-at-step", "30")
    assert "worker 1 ended with code 1" in output
    assert "goes on after epoch 1" in output
    np.testing.assert_allclose(resumed, two, rtol=1e-5)

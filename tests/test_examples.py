"""The examples run as their readers run them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def run_example(name, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_digits(tmp_path):
    result = run_example("digits.py", "--quick", "--out", tmp_path)

    assert result.returncode == 0, result.stderr
    assert "largest difference" in result.stdout
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert (tmp_path / "digits_model" / "saved_model.pb").exists()

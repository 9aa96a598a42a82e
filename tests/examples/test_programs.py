"""The examples run as their readers run them, those that take long with `--quick`."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.mark.slow
def test_digits(tmp_path):
    output = run_example("digits.py", "--quick", "--output", tmp_path)

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
    options = ["miniboone", "--data", tmp_path, "--output", tmp_path / "out", "--hidden", 32]
    options += ["--batch", 100, "--every", 10, "--rtol", 1e-3, "--atol", 1e-3]
    first = run_example("flow_maf_tables.py", *options, "--steps", 20)
    second = run_example("flow_maf_tables.py", *options, "--steps", 40)

    assert "1 flows with hidden layers of [32]" in first
    assert "Goes on after 20 steps" in second
    (before, _), (after, _) = (row("Test log-likelihood", text) for text in (first, second))
    # A standard normal density, where it starts, gives -61 on average.
    assert before < after
    assert -75 < before < -40


@pytest.mark.slow
def test_energy_fields(tmp_path):
    """The script itself fails if a learned energy grows or the losses of the gradients differ."""
    output = run_example("energy_fields.py", "--quick", "--output", tmp_path)

    for equation in ("Korteweg-de Vries", "Cahn-Hilliard"):
        part = output[output.index(f"{equation}  ") :]
        *_, mass, _, learned = row("energy-based", part)
        assert mass < 1e-14
        assert learned < 1e-3
    ours, exact = (row(name, output) for name in ("symplectic_adjoint", "backprop"))
    assert abs(ours[0] / exact[0] - 1) < 0.01
    assert 5 * ours[-1] < exact[-1]
    assert (tmp_path / "energy_fields.png").stat().st_size > 10_000


@pytest.mark.slow
def test_synchronization(tmp_path):
    output = run_example("synchronization.py", "--quick", "--output", tmp_path)

    distance, alone = re.search(r"at the end +([\d.]+) .*pairs\), ([\d.]+) not", output).groups()
    assert float(distance) < 0.3 * float(alone)
    for name in ("sigma", "rho", "beta", "end"):
        exact, difference = row(name, output)
        assert abs(exact - difference) < 0.02 * abs(difference) + 1e-3
    ours, naive = (
        float(re.search(rf"Peak memory of {name} +([\d.]+) MiB", output)[1])
        for name in ("symplectic_adjoint", "backprop")
    )
    assert 20 * ours < naive
    assert (tmp_path / "synchronization.png").stat().st_size > 10_000


@pytest.mark.slow
def test_contact_rate(tmp_path):
    """The script itself fails if the products are not transposes, or the network does not fit."""
    output = run_example("contact_rate.py", "--quick", "--output", tmp_path)
    reached, solves, first = row("Gauss-Newton", output)
    assert reached < 2 * 71 and first < solves < 500
    assert reached < row("Adam", output)[0]
    assert (tmp_path / "contact_rate.png").stat().st_size > 10_000


@pytest.mark.slow
def test_epidemic(tmp_path):
    """The script itself fails if SciPy finds another optimum."""
    output = run_example("epidemic.py", "--quick", "--output", tmp_path)

    names = ["infection, 1/day", "onset, 1/day", "recovery, 1/day", "exposed at start"]
    for name in [*names, "ill at start", "lost date, day"]:
        truth, start, estimate, error, covered = row(name, output)
        assert abs(estimate - truth) < 4 * error
        assert 0 < error < truth
        assert start != truth
        # 20 intervals: 95 % of them on average, less than 70 % once in 60,000 times.
        assert covered >= 70
    inside = float(re.search(r"holds the truth ([\d.]+) %", output)[1])
    assert inside >= 70
    chi_squared, freedom = map(float, re.search(r"chi squared ([\d.]+), (\d+)", output).groups())
    assert freedom == 22
    assert 5 < chi_squared < 55
    _, _, backward, difference = row("BFGS, gradient by tfsymadj", output)
    assert backward < 150
    assert difference < 1e-4
    _, solves, backward, difference = row("least squares, Jacobian by tfsymadj", output)
    assert solves > backward > 0 == backward % 28
    assert difference < 1e-4
    _, passes, backward, difference = row("least squares, sensitivities", output)
    # One pass a step, where the others take a solve for each unknown or row.
    assert backward == 0 < passes < 40
    assert difference < 1e-4
    assert float(re.search(r"a difference of ([\d.e-]+)", output)[1]) < 1e-8
    assert (tmp_path / "epidemic.png").stat().st_size > 10_000


@pytest.mark.slow
def test_robertson(tmp_path):
    """The script itself fails if the rates are not found."""
    output = run_example("robertson.py", "--quick", "--output", tmp_path)

    assert max(row("scaled", output)) < 5 < max(row("not scaled", output))
    assert (tmp_path / "robertson.png").stat().st_size > 10_000


@pytest.mark.slow
def test_lynx_hare(tmp_path):
    output = run_example("lynx_hare.py", "--quick", "--output", tmp_path)

    mean = row("mean", output)
    lotka_volterra, network = (row(name, output) for name in ("Lotka-Volterra", "neural ODE"))
    for values in (lotka_volterra, network):
        assert np.all(np.array(values) < mean)
    # The years fitted and those after, for three cuts; no random number plays a part.
    known = [0.188, 0.381, 0.189, 0.353, 0.195, 0.356]
    np.testing.assert_allclose(lotka_volterra, known, atol=3e-3)
    # Many weights fit better than four rates.
    assert np.all(np.array(network[::2]) < lotka_volterra[::2])
    assert (tmp_path / "lynx_hare.png").stat().st_size > 10_000


@pytest.mark.slow
def test_latent_ode(tmp_path):
    pytest.importorskip("sktime")
    output = run_example("latent_ode.py", "--quick", "--output", tmp_path)

    weights, *latent = row("latent ODE", output)
    gru_weights, *gru = row("GRU", output.replace("GRU -", "-"))
    difference = row("GRU - latent ODE", output)
    assert 0.9 < weights / gru_weights < 1.1
    np.testing.assert_allclose(np.subtract(gru, latent)[::2], difference[::2], atol=2e-4)
    mean = row("mean of the hour", output)
    for value, other in zip(latent[::2], mean[::2]):
        assert 0 < value < other
    # The data of the package, the split and what is observed are always the same.
    np.testing.assert_allclose(mean[::2], [0.1656, 0.3577], atol=1e-3)
    assert (tmp_path / "latent_ode.png").stat().st_size > 10_000


@pytest.mark.slow
def test_spoken_vowels(tmp_path):
    pytest.importorskip("sktime")
    output = run_example("spoken_vowels.py", "--quick", "--output", tmp_path)

    weights, *cde = row("neural CDE", output)
    gru_weights, *gru = row("GRU", output)
    _, *one = row("one speaker", output)
    assert 0.9 < weights / gru_weights < 1.1
    np.testing.assert_allclose(one, 23.8, atol=0.05)
    for found in (cde, gru):
        assert np.all(np.array(found) > 2 * np.array(one))
    assert (tmp_path / "spoken_vowels.png").stat().st_size > 10_000


@pytest.mark.slow
def test_heated_room(tmp_path):
    """The script itself fails if the parameters are not found."""
    output = run_example("heated_room.py", "--quick", "--output", tmp_path)

    names = ["room to walls, 1/h", "walls to outside, 1/h", "room to outside, 1/h", "heater, K/h"]
    for name in names:
        truth, start, estimate, error, *_ = row(name, output)
        assert abs(estimate - truth) < 4 * error < abs(start - truth)
    jumps, without = row("largest deviation, standard errors", output)
    assert jumps < 4 and without > 10
    assert (tmp_path / "heated_room.png").stat().st_size > 10_000


@pytest.mark.slow
def test_long_series(tmp_path):
    output = run_example("long_series.py", "--quick", "--output", tmp_path)

    fitted, *_ = row("growing horizon", output)
    at_once, *_ = row("all at once", output)
    mean, _ = row("mean", output)
    # The noise is 0.02; the model's place is better than one observation's.
    assert fitted < 0.02
    assert fitted < at_once < mean
    steps, evaluations, _ = row("auto", output)
    assert evaluations <= 6 * steps + 2
    assert 5 * steps < row("step", output)[0]
    assert (tmp_path / "long_series.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bouncing_ball(tmp_path):
    output = run_example("bouncing_ball.py", "--quick", "--output", tmp_path)

    derivatives, estimates = output.split("truth", 1)
    for name in ("restitution", "drag, 1/m", "launch speed, m/s", "launch angle, degrees"):
        exact, difference = row(name, derivatives)
        assert abs(exact / difference - 1) < 1e-5
        truth, guess, estimate, error = row(name, estimates)
        assert abs(estimate - truth) < 4 * error < abs(guess - truth)
    assert (tmp_path / "bouncing_ball.png").stat().st_size > 10_000


@pytest.mark.slow
def test_collisions(tmp_path):
    output = run_example("collisions.py", "--quick", "--output", tmp_path)

    names = [f"mass {i} / mass 1" for i in (2, 3, 4)]
    for name in [*names, "restitution of pucks", "restitution of walls", "friction"]:
        truth, guess, learned = row(name, output)
        assert abs(learned - truth) < 0.3 * abs(guess - truth)
    learned, untrained, alone = (
        row(name, output)[0] for name in ("learned", "untrained", "no collisions")
    )
    assert 5 * learned < untrained < alone
    assert (tmp_path / "collisions.png").stat().st_size > 10_000


@pytest.mark.slow
def test_double_pendulum(tmp_path):
    """The script itself fails if the symplectic method does not keep the learned energy."""
    output = run_example("double_pendulum.py", "--quick", "--output", tmp_path)

    *_, angle, _, kept = row("energy, gauss4", output)
    *_, drifting = row("energy, dopri5", output)
    *_, angle_by_slopes, _ = row("slopes, dopri5, 1e-6", output)
    *_, exact = row("truth", output)
    assert kept < 1e-3 < drifting
    assert exact < 1e-6
    # The angles' own root mean square is 0.82; after so short a fit neither model is better.
    assert 0 < angle < 0.6
    assert 0 < angle_by_slopes < 0.6
    assert (tmp_path / "double_pendulum.png").stat().st_size > 10_000


@pytest.mark.slow
def test_dosing(tmp_path):
    """The script itself fails if the parameters are not found."""
    output = run_example("dosing.py", "--quick", "--output", tmp_path)

    names = ["delay, h", "absorption, 1/h", "to the tissue, 1/h", "from the tissue, 1/h"]
    names += ["target, mg/l", "dissociation, mg/l"]
    for name in [*names, *(f"clearance of {i}, 1/h" for i in range(1, 7))]:
        truth, start, estimate, error = row(name, output)
        assert abs(estimate - truth) < 4 * error
        assert start != truth
    [wrong] = row("largest error of a gradient beside differences, of its norm", output)
    [apart] = row("largest difference to SciPy's Radau, of a concentration", output)
    assert wrong < 1e-3
    assert 0 < apart < 1e-3
    assert (tmp_path / "dosing.png").stat().st_size > 10_000


@pytest.mark.slow
def test_reaction_diffusion(tmp_path):
    output = run_example("reaction_diffusion.py", "--quick", "--output", tmp_path)

    [curve] = row("RMS error of the reaction, |u| < 1.8", output)
    [early] = row("RMS error of fields, after a piece", output)
    # Half of f's own root mean square, and of that of the fields.
    assert curve < 0.25
    assert early < 0.5
    steps, _ = row("steps and evaluations of kencarp4", output)
    explicit, _ = row("steps and evaluations of dopri5", output)
    assert steps < explicit
    assert (tmp_path / "reaction_diffusion.png").stat().st_size > 10_000


@pytest.mark.slow
def test_van_der_pol(tmp_path):
    output = run_example("van_der_pol.py", "--tolerance", "1e-3", "--output", tmp_path)

    steps, rejected, evaluations, smallest, largest = row("dopri5", output)
    assert evaluations >= 6 * (steps + rejected)
    assert smallest < largest / 5
    assert (tmp_path / "van_der_pol.png").stat().st_size > 10_000

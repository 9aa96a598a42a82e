"""The data of the partial differential equations, against what is known of their solutions."""

import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[2] / "examples" / "field_data.py"
spec = importlib.util.spec_from_file_location("field_data", PATH)
field_data = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = field_data  # dataclasses look their module up
spec.loader.exec_module(field_data)

KDV, CAHN_HILLIARD = field_data.KortewegDeVries(), field_data.CahnHilliard()
FIELDS = pytest.mark.parametrize("field", [KDV, CAHN_HILLIARD], ids=lambda field: field.name)


@FIELDS
def test_rate_is_G_times_the_gradient_of_the_energy(field):
    u = field.initial(np.random.default_rng(0), 3)
    h = 1e-6 * np.eye(field.points)
    gradient = np.stack([(field.energy(u + e) - field.energy(u - e)) / 2e-6 for e in h], -1)

    if field.derivative == 1:
        expected = (np.roll(gradient, -1, -1) - np.roll(gradient, 1, -1)) / (2 * field.spacing)
    else:
        expected = field.second(gradient)

    scale = np.abs(expected).max()
    np.testing.assert_allclose(field.rate(u) / scale, expected / scale, atol=1e-6)


@FIELDS
def test_data_are_the_same_for_a_seed(field):
    data = field.data(seed=0, batch=2, count=3)

    assert data.shape == (2, 4, field.points)
    np.testing.assert_array_equal(data, field.data(seed=0, batch=2, count=3))
    assert np.abs(data[:, 0] - field.data(seed=1, batch=2, count=0)[:, 0]).max() > 0.1


@FIELDS
def test_mass_is_kept(field):
    data = field.data(seed=0, batch=10, count=200)

    assert np.abs(data.mean(-1) - data[:, :1].mean(-1)).max() < 1e-13


def test_energy_of_korteweg_de_vries_is_kept():
    energy = KDV.energy(KDV.data(seed=0, batch=10, count=200))

    np.testing.assert_allclose(energy, np.broadcast_to(energy[:, :1], energy.shape), rtol=1e-7)


def test_energy_of_cahn_hilliard_decays():
    data = CAHN_HILLIARD.data(seed=0, batch=10, count=200)

    assert np.all(np.diff(CAHN_HILLIARD.energy(data)) < 0)
    # The liquids have parted.
    assert np.all(data[:, -1].max(-1) > 0.8)
    assert np.all(data[:, -1].min(-1) < -0.8)


@FIELDS
def test_half_the_step_changes_nothing(field):
    """Both equations to 1e-4 of the change in an interval, and 1e-5 of the field."""
    data = field.data(seed=0, batch=4, count=200)
    finer = dataclasses.replace(field, steps=2 * field.steps).data(seed=0, batch=4, count=200)

    assert np.abs(data - finer).max() < 1e-5 * np.abs(data).max()
    change, difference = np.diff(data, axis=1), np.diff(data - finer, axis=1)
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(change)


def soliton_error(points, steps):
    """Of a wave that moves by 0.8, a circle of 20 being as good as a line for it: e^-20."""
    field = dataclasses.replace(KDV, length=20.0, points=points, interval=0.2, steps=steps)
    solution = field.solve(field.soliton(0.0, 1.0, 9.0)[None], 1)[0, -1]
    return np.abs(solution - field.soliton(0.2, 1.0, 9.0)).max()


def test_grid_converges_to_the_soliton_at_second_order():
    # The step is as small as the third power of the spacing demands; its error does not show.
    errors = [
        soliton_error(points, steps) for points, steps in [(100, 50), (200, 400), (400, 3200)]
    ]

    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 5e-3
    np.testing.assert_allclose(orders, 2.0, atol=0.15)


def test_small_waves_of_cahn_hilliard_grow_as_they_must():
    """The linearized equation multiplies a wave by exp(q (1 - gamma q) t), q the difference's."""
    field, size = CAHN_HILLIARD, 1e-4
    for k in (1, 5, 8, 12):
        wave = np.cos(2 * np.pi * k * field.x)
        q = (2 - 2 * np.cos(2 * np.pi * k * field.spacing)) / field.spacing**2
        u = field.solve(size * wave[None], 20)[0, -1]

        growth = 2 * u @ wave / field.points / size
        t = 20 * field.interval
        assert growth == pytest.approx(np.exp(q * (1 - field.gamma * q) * t), rel=1e-5)

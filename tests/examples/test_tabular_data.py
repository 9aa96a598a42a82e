"""The loader of the tabular data sets, on small files of the published form."""

import importlib.util
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[2] / "examples" / "tabular_data.py"
spec = importlib.util.spec_from_file_location("tabular_data", PATH)
tabular_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tabular_data)
load = tabular_data.load

ROWS = 200
#: Rows of the splits if a tenth is for the test and a tenth of the rest for validation.
SIZES = (162, 18, 20)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def write_array(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, data)


def write_text(path, names, data, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    # 17 digits give float64 back exactly.
    np.savetxt(path, data, "%.17g", delimiter=delimiter, header=delimiter.join(names), comments="")


def power_data(random):
    return random.normal(size=[ROWS, 8]).round(3)


def gas_sensors(random, rows=ROWS):
    """Eight signals, each by two sensors: four apart from each other, then next to each other."""
    signals = random.normal(size=[rows, 8])
    copies = 3.0 * signals + 0.1 * random.normal(size=[rows, 8])
    apart = np.concatenate([signals[:, :4], copies[:, :4]], axis=1)
    adjacent = np.stack([signals[:, 4:], copies[:, 4:]], axis=-1).reshape(rows, 8)
    return np.concatenate([apart, adjacent], axis=1)


#: Of two sensors with the same signal the later one remains.
GAS_KEPT = [4, 5, 6, 7, 9, 11, 13, 15]


def hepmass_data(random, rows):
    """Class and 27 features; the smallest value of six of them is frequent."""
    data = random.normal(size=[rows, 28])
    data[:, 0] = random.integers(2, size=rows)
    data[:, [2, 6, 10, 14, 18, 22]] = random.integers(3, size=[rows, 6])
    # Frequent, but not the smallest one: the published program keeps this column.
    data[::4, 25] = 0.5
    return data


def hepmass_names(columns):
    return ["# label", *(f"f{i}" for i in range(columns - 1))]


def write_hepmass(folder, random, train, test):
    write_text(folder / "hepmass/1000_train.csv", hepmass_names(train.shape[1]), train)
    extra = random.normal(size=[len(test), 1])
    test = np.concatenate([test, extra], axis=1)
    write_text(folder / "hepmass/1000_test.csv", hepmass_names(test.shape[1]), test)


def write_bsds300(folder, random, columns=63):
    h5py = pytest.importorskip("h5py")
    (folder / "BSDS300").mkdir()
    splits = [random.normal(size=[rows, columns]) for rows in (30, 10, 20)]
    with h5py.File(folder / "BSDS300/BSDS300.hdf5", "w") as file:
        for name, data in zip(("train", "validation", "test"), splits):
            file[name] = data
    return splits


def assert_splits(splits, expected):
    for actual, x in zip(splits, expected):
        assert actual.dtype == "float32"
        # Float32 holds 24 bits; the float64 arithmetic before is of another order at most.
        np.testing.assert_allclose(actual, x, rtol=2.0**-23, atol=1e-12)


def test_power(tmp_path, random):
    data = power_data(random)
    write_array(tmp_path / "power/data.npy", data)
    splits = load("power", tmp_path)
    assert tuple(map(len, splits)) == SIZES

    # Shuffled in place, with the noise as one array: the other way to the same numbers.
    published = np.random.RandomState(42)
    published.shuffle(data)
    data = np.delete(data, [1, 3], axis=1)
    voltage = 0.01 * published.rand(ROWS)
    power = 0.001 * published.rand(ROWS)
    meters = published.rand(ROWS, 3)
    data += np.column_stack([power, voltage, meters, np.zeros(ROWS)])
    data = (data - data[:180].mean(0)) / data[:180].std(0)
    assert_splits(splits, np.split(data, [162, 180]))


def test_power_has_a_seed(tmp_path, random):
    write_array(tmp_path / "power/data.npy", power_data(random))
    first, again, other = (load("power", tmp_path, seed=seed).train for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_gas_from_csv(tmp_path, random):
    sensors = gas_sensors(random)
    names = ["Time", "Meth", "Eth", *(f"S{i}" for i in range(16))]
    data = np.concatenate([random.normal(size=[ROWS, 3]), sensors], axis=1)
    write_text(tmp_path / "gas/ethylene_CO.csv", names, data)
    # Not read if the other file is there.
    write_text(tmp_path / "gas/ethylene_CO.txt", ["nothing"], np.zeros([1, 1]), " ")

    kept = sensors[:, GAS_KEPT]
    expected = (kept - kept.mean(0)) / kept.std(0, ddof=1)
    splits = load("gas", tmp_path)
    assert tuple(map(len, splits)) == SIZES
    assert_splits(splits, np.split(expected, [162, 180]))

    # With the index and another order of the columns.
    order = [4, 0, 3, 1, 2, *range(5, 19)]
    indexed = np.concatenate([np.arange(ROWS)[:, np.newaxis], data[:, order]], axis=1)
    write_text(tmp_path / "gas/ethylene_CO.csv", ["", *(names[i] for i in order)], indexed)
    assert_splits(load("gas", tmp_path), np.split(expected, [162, 180]))


def test_gas_removes_columns_one_after_the_other(tmp_path, random):
    """A chain a ~ b ~ c whose ends are not that close: a goes for b, b for c, c stays."""
    a, b, c, d = random.normal(size=[4, 2000])
    chain = np.stack([a, a + 0.17 * b, a + 0.17 * b + 0.17 * c, d, -d], axis=1)
    correlations = np.corrcoef(chain, rowvar=False)
    assert min(correlations[0, 1], correlations[1, 2]) > 0.98 > correlations[0, 2]
    data = np.concatenate([np.zeros([2000, 3]), chain], axis=1)
    write_text(tmp_path / "gas/ethylene_CO.csv", ["Time", "Meth", "Eth", *"abcde"], data)
    train = load("gas", tmp_path, check=False).train
    # Columns of opposite sign both stay.
    kept = ((chain - chain.mean(0)) / chain.std(0, ddof=1))[: len(train), 2:]
    np.testing.assert_allclose(train, kept, rtol=1e-6, atol=1e-6)


def test_gas_from_text(tmp_path, random):
    sensors = gas_sensors(random, 4 * ROWS)
    data = np.concatenate([np.arange(4 * ROWS)[:, np.newaxis], sensors[:, :2], sensors], axis=1)
    names = ["Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)"]
    write_text(tmp_path / "gas/ethylene_CO.txt", names, data, " ")
    splits = load("gas", tmp_path)

    rows = np.random.RandomState(42).permutation(4 * ROWS)[:ROWS]
    kept = sensors[rows][:, GAS_KEPT]
    expected = (kept - kept.mean(0)) / kept.std(0, ddof=1)
    assert_splits(splits, np.split(expected, [162, 180]))
    assert not np.array_equal(load("gas", tmp_path, seed=1).train, splits.train)


def test_hepmass(tmp_path, random):
    train, test = hepmass_data(random, 400), hepmass_data(random, 100)
    write_hepmass(tmp_path, random, train, test)
    splits = load("hepmass", tmp_path)

    train, test = (x[x[:, 0] == 1] for x in (train, test))
    kept = [i for i in range(1, 28) if i not in (2, 6, 10, 14, 18, 22)]
    mean, std = train[:, kept].mean(0), train[:, kept].std(0, ddof=1)
    rows = len(train) - len(train) // 10
    expected = [(x[:, kept] - mean) / std for x in (train[:rows], train[rows:], test)]
    assert [x.shape for x in splits] == [x.shape for x in expected]
    assert_splits(splits, expected)


def test_miniboone(tmp_path, random):
    data = 3.0 + random.normal(size=[ROWS, 43])
    write_array(tmp_path / "miniboone/data.npy", data)
    splits = load("MINIBOONE", str(tmp_path))
    assert tuple(map(len, splits)) == SIZES
    data = (data - data[:180].mean(0)) / data[:180].std(0)
    assert_splits(splits, np.split(data, [162, 180]))


def test_bsds300(tmp_path, random):
    expected = write_bsds300(tmp_path, random)
    splits = load("bsds300", tmp_path)
    assert splits._fields == ("train", "validation", "test")
    for actual, x in zip(splits, expected):
        np.testing.assert_array_equal(actual, x.astype("float32"))


def test_bsds300_without_h5py(tmp_path, monkeypatch, random):
    write_bsds300(tmp_path, random)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        load("bsds300", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("power", "power/data.npy"),
        ("gas", "gas/ethylene_CO.csv"),
        ("hepmass", "hepmass/1000_train.csv"),
        ("miniboone", "miniboone/data.npy"),
        ("bsds300", "BSDS300/BSDS300.hdf5"),
    ],
)
def test_missing_files(tmp_path, name, file):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / file))
    assert "zenodo.org/records/1161203" in message
    assert message.endswith(f"Received: {str(tmp_path)!r}")
    assert "pickle" not in message.lower()


def test_missing_test_file(tmp_path, random):
    write_hepmass(tmp_path, random, hepmass_data(random, 50), hepmass_data(random, 50))
    (tmp_path / "hepmass/1000_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="1000_test.csv is missing"):
        load("hepmass", tmp_path)


class Trap:
    """Unpickling it would raise another error."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def test_pickles_are_not_loaded(tmp_path):
    (tmp_path / "gas").mkdir()
    (tmp_path / "gas/ethylene_CO.pickle").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileNotFoundError) as caught:
        load("gas", tmp_path)
    assert tabular_data.CONVERSION in str(caught.value)
    assert "gas/ethylene_CO.txt" in str(caught.value)

    for name in ("power", "miniboone"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "data.npy", np.array([Trap()]), allow_pickle=True)
        with pytest.raises(ValueError, match="allow_pickle=False"):
            load(name, tmp_path)


@pytest.mark.parametrize(("name", "columns"), [("miniboone", 42), ("bsds300", 64)])
def test_number_of_columns(tmp_path, name, columns, random):
    if name == "bsds300":
        write_bsds300(tmp_path, random, columns)
    else:
        write_array(tmp_path / "miniboone/data.npy", random.normal(size=[ROWS, columns]))
    with pytest.raises(ValueError, match=rf"{name} data with .* Received: \[{columns}\]"):
        load(name, tmp_path)
    assert load(name, tmp_path, check=False).test.shape[1] == columns


def test_files_of_another_form(tmp_path, random):
    write_array(tmp_path / "power/data.npy", random.normal(size=[ROWS, 6]))
    with pytest.raises(ValueError, match=r"8 columns. Received: shape \(200, 6\)"):
        load("power", tmp_path, check=False)

    write_text(tmp_path / "gas/ethylene_CO.csv", ["Time", "Eth", "A"], np.zeros([5, 3]))
    with pytest.raises(ValueError, match="Time, Meth and Eth .* Received: Time, Eth, A"):
        load("gas", tmp_path)


def test_data_must_be_finite(tmp_path, random):
    data = random.normal(size=[ROWS, 43])
    data[:, 3] = 1.0
    write_array(tmp_path / "miniboone/data.npy", data)
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="must .* finite"):
        load("miniboone", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "", None])
def test_wrong_name(tmp_path, name):
    with pytest.raises(ValueError, match="`name` must be one of power, .* Received: "):
        load(name, tmp_path)


def test_as_a_program(tmp_path, random):
    write_array(tmp_path / "power/data.npy", power_data(random))
    command = [sys.executable, PATH, "--data", tmp_path, "power"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].split() == ["power", "6", "162", "18", "20"]

"""Generators repeat and keep their promises; fetchers read local copies and say what is missing."""

import hashlib
import io
import json
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import sklearn.datasets
from sklearn.utils import Bunch

from sk_dnn2gp import datasets


def offline(*args, **kwargs):
    raise URLError("no network")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SK_DNN2GP_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "fetch_openml", offline)
    return tmp_path


def test_sine_keeps_out_of_its_gap():
    X, y = datasets.make_sine_with_gap(500, gap=(-2, 0.5), noise=0, random_state=3)
    assert X.shape == (500, 1) and y.shape == (500,)
    x = X[:, 0]
    assert (np.abs(x) <= 4).all() and not ((x > -2) & (x < 0.5)).any()
    # Uniform over what is left: 2 of 5.5 units lie below the gap; four standard errors.
    assert abs(np.mean(x < 0) - 2 / 5.5) < 4 * np.sqrt(2 * 3.5 / 5.5**2 / 500)
    np.testing.assert_array_equal(y, np.sin(1.5 * x))


def test_ring_has_radius_two_and_the_core_none():
    X, y = datasets.make_ring_and_core(11, noise=0.0, random_state=0)
    assert np.bincount(y).tolist() == [5, 6]
    # Exact radii up to cos² + sin² in float64.
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 2.0 * y, rtol=1e-15)


@pytest.mark.parametrize("make", [datasets.make_sine_with_gap, datasets.make_ring_and_core])
def test_generators_repeat_and_leave_the_global_state(make):
    before = np.random.get_state()[1].copy()
    one, two, other = make(30, random_state=1), make(30, random_state=1), make(30, random_state=2)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    with pytest.raises(ValueError, match="noise"):
        make(30, noise=-1)


@pytest.mark.parametrize("gap", [(1, -1), (-5, 0), (0, 5), (-4, 4)])
def test_gap_must_lie_inside(gap):
    with pytest.raises(ValueError, match="gap must be"):
        datasets.make_sine_with_gap(gap=gap)


def test_wine_from_a_local_copy(folder):
    X, y = np.arange(22.0).reshape(2, 11), np.array([3, 8])
    np.savez(folder / "uci_wine-quality-red.npz", X=X, y=y, train=[[0]], test=[[1]])
    wine = datasets.fetch_wine_quality_red()
    np.testing.assert_array_equal(wine.data, X)
    assert wine.target.dtype == float and wine.target.tolist() == [3, 8]
    assert wine.train.tolist() == [[0]] and wine.test.tolist() == [[1]]


def test_images_from_local_copies_and_the_argument_goes_first(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("other")
    images = np.arange(2 * 784).reshape(2, 28, 28).astype(np.uint8)
    np.savez(folder / "mnist_t10k.npz", images=images * 0, labels=[0, 0])
    np.savez(place / "mnist_t10k.npz", images=images, labels=np.array([7, 1], np.uint8))
    digits = datasets.fetch_mnist(subset="test", folder=place)
    np.testing.assert_array_equal(digits.images, images)
    np.testing.assert_array_equal(digits.data, images.reshape(2, 784))
    assert digits.target.tolist() == [7, 1]
    colour = np.zeros((1, 32, 32, 3), np.uint8)
    np.savez(folder / "cifar10.npz", images=colour, labels=[4])
    assert datasets.fetch_cifar10().images.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("name", ["wine_quality_red", "mnist", "cifar10"])
def test_offline_says_where_a_copy_may_lie(folder, name):
    file = {"wine_quality_red": "uci_wine-quality-red.npz"}.get(name, f"{name}.npz")
    with pytest.raises(OSError, match=f"{file}.*`folder`.*SK_DNN2GP_DATA"):
        getattr(datasets, f"fetch_{name}")()


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_pickle_in_a_copy_is_read(folder, monkeypatch):
    """A copy holds numbers: what would be run is refused."""
    monkeypatch.chdir(folder)
    images = np.array([Explosive()], dtype=object)
    np.savez(folder / "cifar10.npz", images=images, labels=[0], allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        datasets.fetch_cifar10()
    assert not os.path.exists("exploded")


def test_a_local_copy_without_an_array_is_named(folder):
    np.savez(folder / "cifar10.npz", images=[0])
    with pytest.raises(ValueError, match=r"cifar10.npz lacks \['labels'\]"):
        datasets.fetch_cifar10()
    with pytest.raises(ValueError, match="subset must be"):
        datasets.fetch_mnist(subset="train")


def test_openml_arrays_are_put_in_order(folder, monkeypatch):
    """CIFAR's channels come first on OpenML; wine's grades may be numbered from 1."""
    asked = {}

    def fetch(name, **kwargs):
        asked[name] = kwargs
        if name == "CIFAR_10":
            planes = np.repeat([[1.0, 2.0, 3.0]], 1024, axis=1)
            return Bunch(data=planes, target=np.array(["9"]))
        return Bunch(data=np.ones((2, 11)), target=np.array(["1", "6"]))

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    picture = datasets.fetch_cifar10(data_home="place")
    assert (picture.images[0] == [1, 2, 3]).all() and picture.target.tolist() == [9]
    assert datasets.fetch_wine_quality_red().target.tolist() == [3, 8]
    assert asked["CIFAR_10"]["data_home"] == "place"


def served(arff, md5):
    """What OpenML would answer for a set of two wines, by what the address ends in."""
    names = [*(f"x{i}" for i in range(11)), "quality"]
    kinds = {name: ("nominal" if name == "quality" else "numeric") for name in names}
    features = [
        {
            "name": name, "index": str(i), "data_type": kinds[name],
            "is_target": str(i == 11).lower(), "is_ignore": "false",
            "is_row_identifier": "false", "nominal_value": ["1", "6"],
            "number_of_missing_values": "0",
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    described = {
        "name": "wine", "version": "1", "status": "active", "format": "ARFF", "description": "",
        "url": "https://openml.org/wine.arff", "file_id": "1", "md5_checksum": md5,
    }  # fmt: skip
    answers = {
        "data_version/1": {"data": {"dataset": [{"did": 1}]}},
        "features/1": {"data_features": {"feature": features}},
        "qualities/1": {"data_qualities": {"quality": []}},
        "data/1": {"data_set_description": described},
    }

    def urlopen(request):
        found = [v for end, v in answers.items() if request.full_url.endswith(end)]
        content = json.dumps(found[0]).encode() if found else arff
        stream = io.BytesIO(content)
        stream.info = dict
        return stream

    return urlopen


@pytest.mark.filterwarnings("ignore:Invalid cache, redownloading:RuntimeWarning")
def test_what_openml_sends_is_checked_by_its_hash(folder, monkeypatch, tmp_path):
    head = "".join(f"@attribute x{i} numeric\n" for i in range(11))
    rows = [",".join(["1.5"] * 11 + [grade]) for grade in ("1", "6")]
    text = f"@relation wine\n{head}@attribute quality {{1,6}}\n@data\n" + "\n".join(rows) + "\n"
    arff = text.encode()
    monkeypatch.setattr(datasets, "fetch_openml", sklearn.datasets.fetch_openml)
    md5 = hashlib.md5(arff).hexdigest()
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", served(arff, md5))
    wine = datasets.fetch_wine_quality_red(data_home=tmp_path / "whole")
    assert (wine.data == 1.5).all() and wine.target.tolist() == [3, 8]
    altered = arff.replace(b"1.5", b"1.6", 1)
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", served(altered, md5))
    with pytest.raises(ValueError, match="md5 checksum .* does not match"):
        datasets.fetch_wine_quality_red(data_home=tmp_path / "altered")


@pytest.mark.skipif("SK_DNN2GP_DATA" not in os.environ, reason="SK_DNN2GP_DATA is not set")
def test_the_real_copies(monkeypatch):
    monkeypatch.setattr(datasets, "fetch_openml", offline)
    assert Path(os.environ["SK_DNN2GP_DATA"]).is_dir()
    wine, digits = datasets.fetch_wine_quality_red(), datasets.fetch_mnist(subset="test")
    assert wine.data.shape == (1599, 11) and np.unique(wine.target).tolist() == [3, 4, 5, 6, 7, 8]
    assert digits.images.shape == (10000, 28, 28) and np.bincount(digits.target).min() == 892

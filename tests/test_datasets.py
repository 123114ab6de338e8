"""Loaders: every one reads files laid out as torchvision expects them."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from numpy.testing import assert_allclose, assert_array_equal

from skvae import datasets

GREY_LOADERS = {
    "MNIST": datasets.load_mnist,
    "FashionMNIST": datasets.load_fashion_mnist,
    "KMNIST": datasets.load_kmnist,
}
TORCHVISION_LOADERS = GREY_LOADERS | {
    "CIFAR10": datasets.load_cifar10,
    "CelebA": datasets.load_celeba,
}
each_grey = pytest.mark.parametrize("name", GREY_LOADERS)
each_torchvision = pytest.mark.parametrize("name", TORCHVISION_LOADERS)


@pytest.fixture
def vision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # missing, or of another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    return torchvision


@pytest.fixture
def real_mnist(vision):
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SKVAE_DATA") or beside)
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"MNIST is not in {root}; SKVAE_DATA names another folder")
    return root


def write_idx(path, array):
    """Write the format of MNIST: magic number, sizes, bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_grey(root, name, n_images=(5, 3)):
    """Files of MNIST's kind, of random images; returns (images, labels) by split."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for split, prefix, n in zip(
        ("train", "test"), ("train", "t10k"), n_images, strict=True
    ):
        images = rng.integers(0, 256, (n, 28, 28))
        labels = rng.integers(0, 10, n)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
        written[split] = images, labels
    return written


# ----------------------------------------------------------------------- binarize


def test_binarize_draws_ones_with_the_given_probability():
    X = np.tile(np.float32([0, 0.25, 0.5, 0.9, 1]), (20_000, 1))
    drawn = datasets.binarize(X, random_state=0)
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0, 1}
    # Four standard deviations of a mean of 20,000 draws are at most 0.015.
    assert_allclose(drawn.mean(axis=0), [0, 0.25, 0.5, 0.9, 1], atol=0.015)
    assert_array_equal(drawn[:, [0, 4]], X[:, [0, 4]])


def test_binarize_is_seeded_and_leaves_the_global_generator_alone():
    X = np.full((10, 10), 0.5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = datasets.binarize(X, random_state=3)
    assert_array_equal(first, datasets.binarize(X, random_state=3))
    assert (first != datasets.binarize(X, random_state=4)).any()
    assert (datasets.binarize(X) != datasets.binarize(X)).any()
    generator = np.random.default_rng(3)
    assert_array_equal(first, datasets.binarize(X, random_state=generator))
    assert (first != datasets.binarize(X, random_state=generator)).any()
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("value", [-0.1, 1.1, 255, np.nan])
def test_binarize_refuses_what_is_no_probability(value):
    with pytest.raises(ValueError, match=r"values in \[0, 1\].*received.*MinMaxScaler"):
        datasets.binarize([[0.5, value]])


# ------------------------------------------------------------------------- digits


def test_digits_are_those_of_sklearn_scaled():
    digits = datasets.load_digits()
    expected = sklearn.datasets.load_digits()
    assert digits.data.dtype == np.float32
    assert_allclose(digits.data * 16, expected.data)
    assert_array_equal(digits.target, expected.target)
    assert_array_equal(
        digits.data.reshape(-1, *digits.image_shape) * 16, expected.images
    )
    assert digits.target_names == list("0123456789")
    assert "1797 images of shape (8, 8)" in digits.DESCR
    X, y = datasets.load_digits(return_X_y=True)
    assert_array_equal(X, digits.data)
    assert_array_equal(y, digits.target)


def test_static_is_one_draw_and_dynamic_a_new_one_at_each_call():
    grey = datasets.load_digits().data
    static = datasets.load_digits(binarize="static")
    assert_array_equal(static.data, datasets.binarize(grey, random_state=0))
    assert_array_equal(static.data, datasets.load_digits(binarize="static").data)
    assert "static binarization" in static.DESCR
    assert "grey" not in static

    dynamic = datasets.load_digits(binarize="dynamic")
    assert set(np.unique(dynamic.data)) == {0, 1}
    assert_array_equal(dynamic.grey, grey)
    assert (dynamic.data != datasets.load_digits(binarize="dynamic").data).any()

    for binarize in ("static", "dynamic"):
        seeded = datasets.load_digits(binarize=binarize, random_state=7).data
        assert_array_equal(seeded, datasets.binarize(grey, random_state=7))


def test_unknown_binarization():
    with pytest.raises(ValueError, match="binarize='random' is not one of None, 'dyn"):
        datasets.load_digits(binarize="random")
    with pytest.raises(ValueError, match="binarize=True is not one of"):
        datasets.load_mnist(binarize=True)


# -------------------------------------------------------------- through torchvision


@each_grey
@pytest.mark.parametrize("split", ["train", "test"])
def test_grey_images(name, split, tmp_path, vision):
    images, labels = write_grey(tmp_path, name)[split]
    bunch = GREY_LOADERS[name](split, root=tmp_path)
    assert bunch.data.dtype == np.float32
    assert_allclose(bunch.data * 255, images.reshape(len(images), 784), rtol=1e-6)
    assert_array_equal(bunch.target, labels)
    assert bunch.target.dtype == np.int64
    assert bunch.image_shape == (28, 28)
    assert len(bunch.target_names) == 10
    assert f"{len(images)} images of shape (28, 28)" in bunch.DESCR
    X, y = GREY_LOADERS[name](split, root=str(tmp_path), return_X_y=True)
    assert_array_equal(X, bunch.data)
    assert_array_equal(y, bunch.target)


def test_torchvision_images_can_be_binarized(tmp_path, vision):
    write_grey(tmp_path, "KMNIST")
    grey = datasets.load_kmnist(root=tmp_path).data
    static = datasets.load_kmnist(root=tmp_path, binarize="static").data
    assert_array_equal(static, datasets.binarize(grey, random_state=0))
    dynamic = datasets.load_kmnist(root=tmp_path, binarize="dynamic", random_state=5)
    assert_array_equal(dynamic.data, datasets.binarize(grey, random_state=5))
    assert_array_equal(dynamic.grey, grey)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10(split, tmp_path, vision, monkeypatch):
    CIFAR10 = vision.datasets.CIFAR10
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    batches = {}
    for file, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        batches[file] = {
            "data": rng.integers(0, 256, (2, 3072)).astype(np.uint8),
            "labels": rng.integers(0, 10, 2).tolist(),
        }
        (folder / file).write_bytes(pickle.dumps(batches[file]))
    names = {"label_names": [f"thing {label}" for label in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))

    bunch = datasets.load_cifar10(split, root=tmp_path)
    files = [file for file, _ in getattr(CIFAR10, f"{split}_list")]
    # CIFAR-10 itself is stored channels first.
    expected = np.concatenate([batches[file]["data"] for file in files])
    assert_allclose(bunch.data * 255, expected, rtol=1e-6)
    labels = np.concatenate([batches[file]["labels"] for file in files])
    assert_array_equal(bunch.target, labels)
    assert bunch.image_shape == (3, 32, 32)
    assert bunch.target_names == names["label_names"]


@pytest.fixture
def celeba(tmp_path, vision, monkeypatch):
    """Three training faces and one of the others each, as torchvision stores them."""
    from PIL import Image

    monkeypatch.setattr(vision.datasets.CelebA, "_check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    parts = [0, 0, 0, 1, 1, 2, 2]
    faces = [f"{number:06d}.jpg" for number in range(1, 8)]
    for number, face in enumerate(faces):
        # Black but for the central 148 x 148 pixels, which have one colour.
        pixels = np.zeros((218, 178, 3), dtype=np.uint8)
        pixels[35:183, 15:163] = (40 * number, 100, 200)
        path = folder / "img_align_celeba" / face
        Image.fromarray(pixels).save(path, quality=100, subsampling=0)

    def table(name, header, values):
        rows = [f"{face} {value}" for face, value in zip(faces, values, strict=True)]
        (folder / name).write_text("\n".join([*header, *rows]) + "\n")

    table("list_eval_partition.txt", [], parts)
    table("identity_CelebA.txt", [], range(7))
    table("list_bbox_celeba.txt", ["7", "x y w h"], ["1 2 3 4"] * 7)
    table("list_landmarks_align_celeba.txt", ["7", "a b"], ["1 2"] * 7)
    signs = [f"{1 if number % 2 else -1}  1" for number in range(7)]
    table("list_attr_celeba.txt", ["7", "Bald Smiling "], signs)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "rows"), [("train", [0, 1, 2]), ("valid", [3, 4]), ("test", [5, 6])]
)
def test_celeba(split, rows, celeba):
    bunch = datasets.load_celeba(split, root=celeba, image_size=16)
    assert bunch.image_shape == (3, 16, 16)
    assert bunch.data.shape == (len(rows), 768)
    assert bunch.data.dtype == np.float32
    images = bunch.data.reshape(-1, 3, 16, 16) * 255
    # The black frame is cut off; the inside keeps its colour up to JPEG's error.
    colours = np.array([(40 * row, 100, 200) for row in rows])[:, :, None, None]
    assert_allclose(images, np.broadcast_to(colours, images.shape), atol=12)
    assert_array_equal(bunch.target, [[row % 2, 1] for row in rows])
    assert bunch.target_names == ["Bald", "Smiling"]


def test_celeba_reads_no_more_than_asked_for(celeba):
    X, y = datasets.load_celeba(root=celeba, n_images=2, return_X_y=True)
    assert X.shape == (2, 3 * 64 * 64)
    assert y.shape == (2, 2)
    assert len(datasets.load_celeba(root=celeba, n_images=9).data) == 3


# ------------------------------------------------------------------ where data lie


@each_torchvision
def test_missing_data_say_which_call_gets_them(name, tmp_path, vision):
    load = TORCHVISION_LOADERS[name]
    with pytest.raises(FileNotFoundError) as raised:
        load(root=tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{name} is not, or not whole, in {str(tmp_path)!r}")
    assert f"{load.__name__}(root={str(tmp_path)!r}, download=True)" in message
    assert "SKVAE_DATA" in message


def test_the_call_in_the_message_is_the_one_that_downloads(
    tmp_path, vision, monkeypatch
):
    def download(self):
        write_grey(Path(self.root), "KMNIST")

    monkeypatch.setattr(vision.datasets.KMNIST, "download", download)
    monkeypatch.setenv("SKVAE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"load_kmnist\(download=True\)"):
        datasets.load_kmnist()
    assert datasets.load_kmnist(download=True).data.shape == (5, 784)
    assert datasets.load_kmnist().data.shape == (5, 784)


def test_a_failing_download_is_not_taken_for_missing_data(
    tmp_path, vision, monkeypatch
):
    def download(self):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(vision.datasets.MNIST, "download", download)
    with pytest.raises(RuntimeError, match="no route to host"):
        datasets.load_mnist(root=tmp_path, download=True)


def test_root_then_environment_then_home(tmp_path, vision, monkeypatch):
    roots = {place: tmp_path / place for place in ("given", "named", "home")}
    for n_images, (place, root) in enumerate(roots.items(), start=1):
        folder = root / "skvae_data" if place == "home" else root
        write_grey(folder, "MNIST", n_images=(n_images, 1))
    monkeypatch.setenv("SKVAE_DATA", str(roots["named"]))
    monkeypatch.setenv("HOME", str(roots["home"]))
    monkeypatch.setenv("USERPROFILE", str(roots["home"]))
    assert len(datasets.load_mnist(root=roots["given"]).data) == 1
    assert len(datasets.load_mnist().data) == 2
    monkeypatch.delenv("SKVAE_DATA")
    assert len(datasets.load_mnist().data) == 3


@each_torchvision
def test_unknown_split(name):
    with pytest.raises(ValueError, match=r"split='all' is not one of 'train', "):
        TORCHVISION_LOADERS[name]("all")


@each_torchvision
def test_missing_torchvision_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    load = TORCHVISION_LOADERS[name]
    with pytest.raises(ImportError, match=rf"{load.__name__} needs.*skvae\[vision\]"):
        load()


def test_torchvision_of_another_torch_names_the_extra(tmp_path, monkeypatch):
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision.py").write_text(broken)
    for module in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"nms does not exist.*skvae\[vision\]"):
        datasets.load_mnist(root=tmp_path)


# ------------------------------------------------------------------ the real thing


def test_mnist_itself(real_mnist):
    train = datasets.load_mnist(root=real_mnist)
    X_test, y_test = datasets.load_mnist("test", root=real_mnist, return_X_y=True)
    assert train.data.shape == (60_000, 784)
    assert X_test.shape == (10_000, 784)
    assert train.data.min() == 0
    assert train.data.max() == 1
    assert_allclose(train.data.mean(), 0.1307, atol=5e-5)
    assert_array_equal(train.target[:8], [5, 0, 4, 1, 9, 2, 1, 3])
    assert_array_equal(y_test[:8], [7, 2, 1, 0, 4, 1, 4, 9])
    assert train.target_names[7] == "7 - seven"
    static = datasets.load_mnist("test", root=real_mnist, binarize="static").data
    assert_allclose(static.mean(), X_test.mean(), atol=1e-3)

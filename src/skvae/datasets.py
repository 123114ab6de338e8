"""Images for a first look, as arrays scaled to [0, 1].

Every loader returns what scikit-learn's own loaders return: a Bunch with ``data``, one
flattened image per row, and ``target``. Colour images are flattened channels first,
so that ``data.reshape(-1, *image_shape)`` gives the images back.

The digits come with scikit-learn. The others are read through torchvision
(``pip install 'skvae[vision]'``) from the folder named by ``root``, else by the
environment variable ``SKVAE_DATA``, else ``~/skvae_data``.
"""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn.datasets
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

__all__ = [
    "binarize",
    "load_celeba",
    "load_cifar10",
    "load_digits",
    "load_fashion_mnist",
    "load_kmnist",
    "load_mnist",
]

Binarization = Literal["dynamic", "static"] | None
RandomState = int | np.random.Generator | None

_LOADERS = {
    "MNIST": "load_mnist",
    "FashionMNIST": "load_fashion_mnist",
    "KMNIST": "load_kmnist",
    "CIFAR10": "load_cifar10",
    "CelebA": "load_celeba",
}
_DESCRIPTIONS = {
    "digits": "Handwritten digits, the test set of UCI's Optical Recognition of "
    "Handwritten Digits, as scikit-learn carries it.",
    "MNIST": "Handwritten digits. LeCun, Bottou, Bengio and Haffner (1998), "
    "Gradient-based learning applied to document recognition.",
    "FashionMNIST": "Articles of clothing. Xiao, Rasul and Vollgraf (2017), "
    "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
    "KMNIST": "Cursive Japanese characters. Clanuwat et al. (2018), Deep learning for "
    "classical Japanese literature, http://codh.rois.ac.jp/kmnist",
    "CIFAR10": "Photographs of ten kinds of things. Krizhevsky (2009), Learning "
    "multiple layers of features from tiny images.",
    "CelebA": "Faces of celebrities, aligned, with 40 attributes each. Liu, Luo, Wang "
    "and Tang (2015), Deep learning face attributes in the wild.",
}


def binarize(X: ArrayLike, random_state: RandomState = None) -> NDArray[np.float32]:
    """Draw every entry as 0 or 1, where x is the probability of a 1.

    Parameters
    ----------
    X : array-like
        Grey values in [0, 1], of any shape.
    random_state : int, numpy.random.Generator or None, default=None
        Seed of the draw. None draws anew at each call.

    Returns
    -------
    ndarray of float32, of the shape of X
        Zeros and ones, whose expectation is X.

    Raises
    ------
    ValueError
        If a value lies outside [0, 1] or is not a number.

    Examples
    --------
    Dynamic binarization trains each epoch on a new draw:

    >>> from skvae import VAEEstimator
    >>> from skvae.datasets import binarize, load_digits
    >>> X, _ = load_digits(return_X_y=True)
    >>> vae = VAEEstimator(latent_dim=2, hidden_dim=8, likelihood="bernoulli")
    >>> for epoch in range(2):
    ...     vae = vae.partial_fit(binarize(X, random_state=epoch))
    """
    X = np.asarray(X, dtype=np.float32)
    # Written so that it is False for a NaN, too.
    if X.size and not (X.min() >= 0 and X.max() <= 1):
        raise ValueError(
            "binarize expects probabilities, values in [0, 1], and received values "
            f"from {X.min():g} to {X.max():g}. Scale X first, for instance by "
            "sklearn.preprocessing.MinMaxScaler(clip=True)."
        )
    uniform = np.random.default_rng(random_state).random(X.shape, dtype=np.float32)
    return (uniform < X).astype(np.float32)


def load_digits(
    *,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load scikit-learn's 1,797 digits of 8 x 8 pixels, scaled to [0, 1].

    Nothing is downloaded. Split the rows with
    :func:`sklearn.model_selection.train_test_split`.

    Parameters
    ----------
    binarize, random_state, return_X_y
        As in :func:`load_mnist`.

    Returns
    -------
    Bunch or (data, target)
        As in :func:`load_mnist`, with data of shape (1797, 64).

    Examples
    --------
    >>> from skvae.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.data.shape, digits.image_shape, digits.data.max()
    ((1797, 64), (8, 8), np.float32(1.0))
    """
    _check_choice("binarize", binarize, (None, "dynamic", "static"))
    digits = sklearn.datasets.load_digits()
    return _bunch(
        "digits",
        (digits.data / 16).astype(np.float32),
        digits.target,
        image_shape=(8, 8),
        target_names=[str(name) for name in digits.target_names],
        binarization=binarize,
        random_state=random_state,
        return_X_y=return_X_y,
    )


def load_mnist(
    split: Literal["train", "test"] = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        Which part to load.
    root : path, default=None
        Folder of the data, laid out as torchvision does. None means the environment
        variable ``SKVAE_DATA``, or ``~/skvae_data`` where that is not set.
    download : bool, default=False
        Whether to download what is missing into ``root``.
    binarize : {None, "dynamic", "static"}, default=None
        None leaves the grey values. The others replace each by a 0 or a 1, drawn
        with the grey value as the probability of a 1:

        - ``"static"``: the same draw at every call. Published results on static MNIST
          use another fixed draw (Larochelle and Murray, 2011).
        - ``"dynamic"``: a new draw at every call. An array holds one draw, so fitting
          for many epochs on it is not dynamic yet: the Bunch carries the grey values
          as ``grey``, from which :func:`skvae.datasets.binarize` draws anew for each
          epoch, as its example shows.
    random_state : int, numpy.random.Generator or None, default=None
        Seed of the draw. None means seed 0 for ``"static"`` and fresh randomness for
        ``"dynamic"``.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` instead of a Bunch.

    Returns
    -------
    Bunch or (data, target)
        data : ndarray of float32, (n_images, n_pixels)
            Pixels in [0, 1], one image per row.
        target : ndarray of int64, (n_images,)
            The class of each image, an index into ``target_names``.
        target_names : list of str
            Names of the classes.
        image_shape : tuple of int
            Shape of one image: (28, 28), or (3, height, width) where there is colour.
        grey : ndarray of float32, (n_images, n_pixels)
            The values before binarization, only with ``binarize="dynamic"``.
        DESCR : str
            What the data are.

    Raises
    ------
    FileNotFoundError
        If the data are not in ``root`` and ``download`` is False.
    ImportError
        If torchvision is missing or does not belong to the installed torch.
    ValueError
        If ``split`` or ``binarize`` is none of the above.

    Examples
    --------
    >>> from skvae.datasets import load_mnist
    >>> X, y = load_mnist(download=True, return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (60000, 784)
    >>> load_mnist("validation")
    Traceback (most recent call last):
    ...
    ValueError: split='validation' is not one of 'train', 'test'.
    """
    return _load_torchvision(
        "MNIST", split, root, download, binarize, random_state, return_X_y
    )


def load_fashion_mnist(
    split: Literal["train", "test"] = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load FashionMNIST: 60,000 + 10,000 articles of clothing of 28 x 28 pixels.

    Parameters
    ----------
    split, root, download, binarize, random_state, return_X_y
        As in :func:`load_mnist`.

    Returns
    -------
    Bunch or (data, target)
        As in :func:`load_mnist`.

    Examples
    --------
    >>> from skvae.datasets import load_fashion_mnist
    >>> load_fashion_mnist(download=True).target_names[0]  # doctest: +SKIP
    'T-shirt/top'
    """
    return _load_torchvision(
        "FashionMNIST", split, root, download, binarize, random_state, return_X_y
    )


def load_kmnist(
    split: Literal["train", "test"] = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load KMNIST: 60,000 + 10,000 cursive Japanese characters of 28 x 28 pixels.

    Parameters
    ----------
    split, root, download, binarize, random_state, return_X_y
        As in :func:`load_mnist`.

    Returns
    -------
    Bunch or (data, target)
        As in :func:`load_mnist`.

    Examples
    --------
    >>> from skvae.datasets import load_kmnist
    >>> load_kmnist(download=True).target_names[0]  # doctest: +SKIP
    'o'
    """
    return _load_torchvision(
        "KMNIST", split, root, download, binarize, random_state, return_X_y
    )


def load_cifar10(
    split: Literal["train", "test"] = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load CIFAR-10: 50,000 + 10,000 photographs of 32 x 32 pixels in colour.

    Parameters
    ----------
    split, root, download, binarize, random_state, return_X_y
        As in :func:`load_mnist`.

    Returns
    -------
    Bunch or (data, target)
        As in :func:`load_mnist`, with data of shape (n_images, 3072), channels first.

    Examples
    --------
    >>> from skvae.datasets import load_cifar10
    >>> load_cifar10(download=True).image_shape  # doctest: +SKIP
    (3, 32, 32)
    """
    return _load_torchvision(
        "CIFAR10", split, root, download, binarize, random_state, return_X_y
    )


def load_celeba(
    split: Literal["train", "valid", "test"] = "train",
    *,
    image_size: int = 64,
    n_images: int | None = None,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    binarize: Binarization = None,
    random_state: RandomState = None,
    return_X_y: bool = False,
) -> Any:
    """Load CelebA: 162,770 + 19,867 + 19,962 aligned faces in colour.

    Each image is cut to its central 148 x 148 pixels and resized, as is usual for
    variational autoencoders. The whole training split takes 8 GB at ``image_size=64``;
    ``n_images`` asks for less. Downloading needs the package gdown.

    Parameters
    ----------
    split : {"train", "valid", "test"}, default="train"
        Which part to load.
    image_size : int, default=64
        Height and width to resize to, in pixels.
    n_images : int or None, default=None
        How many images to read, from the first one on. None reads them all.
    root, download, binarize, random_state, return_X_y
        As in :func:`load_mnist`.

    Returns
    -------
    Bunch or (data, target)
        As in :func:`load_mnist`, with data of shape (n_images, 3 * image_size ** 2),
        channels first, and a target of shape (n_images, 40): 1 where the face has the
        attribute of ``target_names``.

    Examples
    --------
    >>> from skvae.datasets import load_celeba
    >>> faces = load_celeba("valid", n_images=1000)  # doctest: +SKIP
    >>> faces.data.shape, faces.image_shape  # doctest: +SKIP
    ((1000, 12288), (3, 64, 64))
    """
    return _load_torchvision(
        "CelebA",
        split,
        root,
        download,
        binarize,
        random_state,
        return_X_y,
        image_size=image_size,
        n_images=n_images,
    )


def _load_torchvision(
    name: str,
    split: str,
    root: str | os.PathLike[str] | None,
    download: bool,
    binarization: Binarization,
    random_state: RandomState,
    return_X_y: bool,
    **faces: Any,
) -> Any:
    """Read the torchvision dataset ``name`` on behalf of its public loader."""
    loader = _LOADERS[name]
    celeba = name == "CelebA"
    splits = ("train", "valid", "test") if celeba else ("train", "test")
    _check_choice("split", split, splits)
    _check_choice("binarize", binarization, (None, "dynamic", "static"))
    try:
        import torchvision
    # Beside another version of torch than its own, torchvision fails in many ways.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ImportError(
            f"{loader} needs torchvision, which could not be imported ({error}). "
            "Install the version that belongs to your torch: "
            "pip install 'skvae[vision]'"
        ) from error
    folder = Path(root or os.environ.get("SKVAE_DATA") or "~/skvae_data").expanduser()
    part = {"split": split} if celeba else {"train": split == "train"}
    try:
        dataset = getattr(torchvision.datasets, name)(folder, download=download, **part)
    except RuntimeError as error:
        if download:
            raise
        given = "" if root is None else f"root={os.fspath(root)!r}, "
        raise FileNotFoundError(
            f"{name} is not, or not whole, in {str(folder)!r}. Get it there with "
            f"skvae.datasets.{loader}({given}download=True), or name the folder that "
            "holds it by root= or the environment variable SKVAE_DATA."
        ) from error
    if celeba:
        X, y = _read_faces(dataset, **faces)
        image_shape: tuple[int, ...] = (3, faces["image_size"], faces["image_size"])
        # The header line of the attributes ends in a blank, which reads as a name.
        target_names = [attribute for attribute in dataset.attr_names if attribute]
    else:
        images = np.asarray(dataset.data)
        if images.ndim == 4:
            images = images.transpose(0, 3, 1, 2)
        image_shape = images.shape[1:]
        X = images.reshape(len(images), -1).astype(np.float32)
        X /= 255
        y = np.asarray(dataset.targets, dtype=np.int64)
        target_names = list(dataset.classes)
    return _bunch(
        name,
        X,
        y,
        image_shape,
        target_names,
        binarization,
        random_state,
        return_X_y,
    )


def _read_faces(
    dataset: Any, image_size: int, n_images: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from torchvision import transforms

    crop = transforms.Compose(
        [transforms.CenterCrop(148), transforms.Resize(image_size)]
    )
    n_images = len(dataset) if n_images is None else min(n_images, len(dataset))
    # Filled row by row: there is never a second copy of what may be gigabytes.
    X = np.empty((n_images, 3, image_size, image_size), dtype=np.float32)
    for row in range(n_images):
        X[row] = np.asarray(crop(dataset[row][0])).transpose(2, 0, 1)
    X /= 255
    return X.reshape(n_images, -1), dataset.attr[:n_images].numpy()


def _bunch(
    name: str,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    image_shape: tuple[int, ...],
    target_names: list[str],
    binarization: Binarization,
    random_state: RandomState,
    return_X_y: bool,
) -> Any:
    grey = {"grey": X} if binarization == "dynamic" else {}
    values = "not binarized"
    if binarization is not None:
        fixed = binarization == "static" and random_state is None
        X = binarize(X, 0 if fixed else random_state)
        values = f"{binarization} binarization: one Bernoulli draw per value"
    if return_X_y:
        return X, y
    return Bunch(
        data=X,
        target=y,
        target_names=target_names,
        image_shape=image_shape,
        DESCR=f"{_DESCRIPTIONS[name]}\n\n{len(X)} images of shape {image_shape}, "
        f"flattened to rows of {X.shape[1]} values in [0, 1] ({values}).",
        **grey,
    )


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} is not one of {expected}.")

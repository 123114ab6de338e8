"""ConditionalVAEEstimator: a variational autoencoder that is told the class."""

from typing import Any

import numpy as np

from .estimator import VAEEstimator
from .forms import Labels


class ConditionalVAEEstimator(VAEEstimator):
    r"""Conditional variational autoencoder: a decoder that is told the class.

    Maximises

    .. math:: \log p(x|y) \ge \mathbb E_{q(z|x)} \log p(x|z, y)
        - \mathrm{KL}\left(q(z|x) \,\|\, p(z)\right).

    The encoder sees x alone, so that ``transform(X)`` keeps its shape and needs no
    labels; what the class already says about x, the code need not repeat. It holds what
    is left, the style: ``inverse_transform(transform(X), y)`` shows X in the style of
    its rows as members of other classes.

    Parameters
    ----------
    latent_dim, hidden_dim, ...
        Those of :class:`VAEEstimator`, all of them.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen during ``fit``, sorted.

    class_count_ : ndarray of shape (n_classes,)
        Weight of the rows of each class that were trained on: their number, where
        there are no weights.

    See Also
    --------
    VAEEstimator : The same without classes; its other attributes are here, too.

    References
    ----------
    Kingma, Rezende, Mohamed and Welling (2014), "Semi-supervised learning with deep
    generative models"; Sohn, Lee and Yan (2015), "Learning structured output
    representation using deep conditional generative models".

    Examples
    --------
    >>> from skvae import ConditionalVAEEstimator
    >>> from skvae.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> vae = ConditionalVAEEstimator(8, hidden_dim=64, epochs=5, random_state=0)
    >>> vae = vae.fit(X, y)
    >>> vae.sample(3, y=7, random_state=0).shape
    (3, 64)
    >>> vae.inverse_transform(vae.transform(X[:5]), y=0).shape
    (5, 64)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _labels_of(self, y: Any, n_rows: int, classes: Any = None) -> Labels:
        return Labels.of(y, n_rows, classes)

    @property
    def _labels(self) -> Labels:
        labels = self._value.labels
        assert isinstance(labels, Labels)
        return labels

    @property
    def classes_(self) -> np.ndarray:
        """The labels seen during ``fit``, sorted."""
        return self._labels.classes

    @property
    def class_count_(self) -> np.ndarray:
        """Weight of the rows of each class that were trained on."""
        return self._labels.counts

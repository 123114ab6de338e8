"""Displays: what a fitted VAE has learned, in pictures.

As in scikit-learn, a display stores arrays, ``from_estimator`` computes them from a
fitted estimator (or a fitted Pipeline that ends in one) and draws them, and ``plot``
draws them again, on axes of your own. ``figure_`` and ``ax_`` hold what was drawn.

Rows that are images are drawn as images. Others are drawn as lines over the features,
each feature scaled to the range of what is shown.
"""

from .interpolation import InterpolationDisplay
from .latent_space import LatentSpaceDisplay
from .loss_curve import LossCurveDisplay
from .manifold import ManifoldDisplay
from .reconstruction import ReconstructionDisplay
from .samples import SampleDisplay
from .search import SearchDisplay
from .traversal import LatentTraversalDisplay

__all__ = [
    "InterpolationDisplay",
    "LatentSpaceDisplay",
    "LatentTraversalDisplay",
    "LossCurveDisplay",
    "ManifoldDisplay",
    "ReconstructionDisplay",
    "SampleDisplay",
    "SearchDisplay",
]

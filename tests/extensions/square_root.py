"""An objective: the square root of the KL term, which is steep near 0."""

from skvae.objectives import OBJECTIVES, Objective


class SquareRootKL(Objective):
    """The reconstruction plus the square root of the KL term."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def loss(self, terms):
        root = terms.divergence.clamp(min=1e-6).sqrt()
        return terms.reconstruction + self.weight * root


OBJECTIVES["square_root_kl"] = SquareRootKL

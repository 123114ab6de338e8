"""A form: complex rows; the columns are real parts, then imaginary ones."""

from dataclasses import dataclass

import numpy as np
from sklearn.utils.validation import validate_data

from skvae.forms import FORMS, Column, Form


@dataclass(frozen=True)
class Spectra(Form):
    columns: tuple[Column, ...]
    dtype = np.dtype(float)

    accepts = staticmethod(np.iscomplexobj)
    n_features = property(lambda self: self.n_columns // 2)

    @classmethod
    def of(cls, X):
        return cls.from_state({"n": 2 * X.shape[1]})

    def check(self, estimator, X, *, reset=False):
        return validate_data(estimator, X, reset=reset, skip_check_array=True)

    def batch(self, rows):
        return np.hstack([rows.real, rows.imag]), None

    def decode(self, array, like=None):
        return np.hsplit(array, 2)[0] + 1j * np.hsplit(array, 2)[1]

    def state(self):
        return {"n": self.n_columns}

    @classmethod
    def from_state(cls, state, n_columns=None):
        return cls(tuple(map(Column, range(state["n"]))))


FORMS["spectra"] = Spectra

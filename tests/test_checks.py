import numpy as np
import pytest

from skvae.checks import check_codes, check_count, fresh_if_none


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"n=.* must be an int of at least 1\."):
        check_count("n", value, 1)


@pytest.mark.parametrize("value", [1, np.int64(7)])
def test_a_count_passes(value):
    check_count("n", value, 1)


def test_codes_have_the_width_of_the_code():
    codes = check_codes([[1, 2]], 2)
    assert codes.dtype == np.float32
    with pytest.raises(ValueError, match="Z has 2 columns, but latent_dim=3"):
        check_codes(codes, 3)


def test_only_none_is_replaced_and_never_by_the_same():
    state = np.random.RandomState(0)
    assert fresh_if_none(state) is state
    assert fresh_if_none(0) == 0
    assert fresh_if_none(None) != fresh_if_none(None)

"""The gate for arguments: nothing is cut, wrapped or guessed, and the error names argument, value and place."""

import numpy as np
import pytest

from ksmwalk.gate import as_array, as_flag, as_int, shown


@pytest.mark.parametrize("value", [5, np.uint8(5), np.int64(5), np.uint64(5), np.array(5)])
def test_integers_of_any_kind_come_out_as_int(value):
    assert as_int(value, "n") == 5 and type(as_int(value, "n")) is int


@pytest.mark.parametrize("value", [5.0, "5", None, True, np.float64(5), np.bool_(True), np.array([5]), [5], b"5", 5j])
def test_what_is_no_integer_is_named(value):
    with pytest.raises(TypeError, match="^length .*: must be an integer$"):
        as_int(value, "length")


@pytest.mark.parametrize("value", [-1, 2**64, np.int64(-1), 2**5000])
def test_nothing_wraps(value):
    with pytest.raises(ValueError, match=r"^addr .*: must be from 0 to 18446744073709551615 \(0xffffffffffffffff\)$"):
        as_int(value, "addr")


def test_both_bounds_belong():
    assert as_int(4, "levels", 4, 5) == 4 and as_int(5, "levels", 4, 5) == 5
    for wrong in (3, 6):
        with pytest.raises(ValueError, match=f"levels {wrong}: must be from 4 to 5"):
            as_int(wrong, "levels", 4, 5)


def test_switches():
    assert [as_flag(v, "on") for v in (True, False, 1, 0, np.bool_(True), np.uint8(0))] == [True, False, True, False, True, False]
    for wrong in (2, -1, "yes", None, 1.0, np.nan, np.array([True])):
        with pytest.raises(TypeError, match="^on .*: must be True or False$"):
            as_flag(wrong, "on")


def test_arrays_are_copied_only_where_they_must_be():
    right = np.arange(4, dtype=np.uint64)
    assert as_array(right, "keys") is right
    for other in (right[::2], right.astype(">u8"), right.astype(np.int8), list(range(4)), (0, 1, 2, 3)):
        out = as_array(other, "keys")
        assert out.dtype == np.uint64 and out.flags.c_contiguous and out.tolist() == list(map(int, other))
    assert as_array([], "keys").shape == (0,)
    assert as_array([2**63, 1], "keys").tolist() == [2**63, 1]
    assert as_array([[1], [2]], "keys", ndim=None).shape == (2, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, -2], r"keys\[1\] -2: must be from 0"), (np.array([1, 2, -3]), r"keys\[2\] -3: must be from 0"),
        ([1, 2**64], r"keys\[1\] 18446744073709551616 \(0x10000000000000000\)"), ([2**63, -1], r"keys\[1\] -1"),
    ],
)  # fmt: skip
def test_the_element_out_of_bounds_is_named(value, words):
    with pytest.raises(ValueError, match=words):
        as_array(value, "keys")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros(3), r"pfns of dtype float64 and shape \(3,\): must be one row of integers"),
        (np.zeros((2, 2), int), r"shape \(2, 2\)"), (np.zeros(2, bool), "dtype bool"), ([[1], [2, 3]], "pfns"),
        ("abc", "dtype <U3"),
        ([1.5], r"pfns\[0\] 1.5: must be an integer"), (5, r"shape \(\)"), (None, "dtype object"), ([1, None], r"pfns\[1\] None"),
    ],
)  # fmt: skip
def test_what_is_no_row_of_integers_is_named(value, words):
    with pytest.raises(TypeError, match=words):
        as_array(value, "pfns")


def test_bounds_of_elements():
    assert as_array([1, 7], "n", np.int8, 1, 7).tolist() == [1, 7]
    for wrong, at in (([1, 8], 1), ([0, 1], 0)):
        with pytest.raises(ValueError, match=rf"n\[{at}\] {wrong[at]}: must be from 1 to 7"):
            as_array(wrong, "n", np.int8, 1, 7)


def test_whatever_it_is_can_be_shown():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in (Broken(), deep, 2**100_000, "x" * 10_000, np.zeros(10**6), list(range(10**5))):
        assert 0 < len(shown(value)) < 200

from __future__ import annotations

import numpy as np
import pytest

from tests.defenses.parity.cases import EXACT, Case, digits
from tests.defenses.parity.table import table, written


def test_the_table_of_comparisons_is_that_of_the_cases():
    assert written() == table(), "write the table anew: python -m tests.defenses.parity.table"


def test_digits_are_those_of_the_largest_value():
    assert digits([100.0, 1.0], [100.0, 1.0]) == EXACT
    assert digits([100.0, 1.002], [100.0, 1.0]) == 4
    assert digits([1.0, -1.0], [1.0, 1.0]) == 0
    assert digits([np.nan], [1.0]) == 0
    assert digits([1, 2, 3], [1, 2, 4]) == 0  # whole numbers agree in all or in none
    with pytest.raises(AssertionError, match="shapes"):
        digits([1.0], [1.0, 2.0])


def test_too_few_digits_and_missing_results_are_failures():
    case = Case("someone/code 0123456", "a loss", "", {}, {"loss": 1.0}, 6)
    case.agree(loss=1.0000001)
    with pytest.raises(AssertionError, match="a loss: digits"):
        case.agree(loss=1.001)
    with pytest.raises(AssertionError):
        case.agree(cost=1.0)

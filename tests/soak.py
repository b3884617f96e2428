"""What only `make soak` runs: `pytest -m soak --full`."""

from collections.abc import Sequence

import pytest

ONLY = pytest.mark.soak(only=True)


def few(cases: Sequence, chosen: Sequence) -> list:
    """For `parametrize`: the chosen ones of all cases always, the others with `--full`; both as `make soak` needs them.

    What is chosen has each mechanism once; what is left out are further combinations of them.
    """
    unknown = [case for case in chosen if case not in cases]
    if unknown:
        raise ValueError(f"chosen: {unknown} are none of the cases")
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [pytest.mark.soak if case in chosen else ONLY for case in cases]
    return [pytest.param(*value, marks=mark) for value, mark in zip(values, marks, strict=True)]

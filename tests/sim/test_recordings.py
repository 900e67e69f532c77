"""Shipped recordings: each case is within its own tolerance, as `accuracy --gate` asks."""

from __future__ import annotations

from functools import cache

import pytest

from sim.catalog import RECORDINGS
from sim.results.accuracy import Accuracy, assess_case, case_folders

FOLDERS = case_folders(RECORDINGS)
assessed = cache(assess_case)


@pytest.mark.accuracy
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parts[-3]}/{folder.name}")
def test_the_prediction_is_within_the_tolerance(folder):
    case = assessed(folder)
    assert case.passed, case.reason


@pytest.mark.accuracy
def test_policies_are_predicted_in_the_order_in_which_they_were_measured():
    ranks = Accuracy(tuple(map(assessed, FOLDERS)), ()).rank_agreement_frac
    assert ranks is not None
    assert ranks >= 0.9

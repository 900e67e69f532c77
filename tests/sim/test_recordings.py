"""Shipped recordings: each case is within its own tolerance, as `accuracy --gate` asks."""

from __future__ import annotations

import pytest

from sim.catalog import RECORDINGS
from sim.results.accuracy import assess, assess_case, case_folders

FOLDERS = case_folders(RECORDINGS)


@pytest.mark.accuracy
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parts[-3]}/{folder.name}")
def test_the_prediction_is_within_the_tolerance(folder):
    case = assess_case(folder)
    assert case.passed, case.reason


@pytest.mark.accuracy
def test_policies_are_predicted_in_the_order_in_which_they_were_measured():
    ranks = assess(RECORDINGS).rank_agreement_frac
    assert ranks is not None
    assert ranks >= 0.9

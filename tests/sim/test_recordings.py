"""Shipped recordings: each case is within its own tolerance, as `accuracy --gate` asks."""

from __future__ import annotations

from functools import cache
from statistics import median

import pytest

from sim.catalog import RECORDINGS, find_hardware
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


@pytest.mark.accuracy
def test_a_machine_that_was_never_measured_predicts_what_was_measured_on_its_kind():
    """Published operator timings and a published link, against our own decodes on such a GPU."""
    composed = find_hardware("h100-sxm+pcie5-x16")
    folders = [folder for folder in FOLDERS if folder.parts[-3] == "h100-pcie5"]
    found = Accuracy(tuple(assess_case(folder, composed) for folder in folders))
    assert len(found.cases) == 30
    assert median(found.errors_frac) < 0.05
    assert found.errors_frac[-1] < 0.10
    ranks = found.rank_agreement_frac
    assert ranks is not None
    assert ranks >= 0.9

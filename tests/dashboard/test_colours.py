"""Colours that stand side by side differ for normal, deuteranopic and protanopic eyes.

Dichromacy is simulated with the matrices of Machado, Oliveira and Fernandes (2009), severity 1, on
linear RGB; distances are CIE76 in CIELAB (D65).
"""

import re
import tomllib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import dashboard
from dashboard.controls.widgets import STYLE
from dashboard.figures.memory import MEMORY_COLOUR
from dashboard.figures.restores import SOURCE_COLOUR
from dashboard.figures.style import (
    ALERT_COLOUR,
    BREAKDOWN_COLOUR,
    MUTED,
    OP_COLOUR,
    PHASE_COLOUR,
    POLICY_COLOUR,
    RESTORE_COLOUR,
    SPLIT_COLOUR,
    text_colour,
)
from dashboard.figures.time_breakdown import CAUSE_COLOUR
from sim.graph.tasks import LANE_OF_OP
from sim.lanes import LANES, TIER_LANES

CONFIG = Path(dashboard.__file__).parent / ".streamlit" / "config.toml"
LEAST_DISTANCE = 15.0
VISIONS = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
D65 = np.array([0.95047, 1.0, 1.08883])

LANE_OPS = {
    lane: {op: OP_COLOUR[op] for op, where in LANE_OF_OP.items() if where == lane}
    for lane in (*LANES, *TIER_LANES)
}
NEIGHBOURS = {
    **LANE_OPS,
    "policies": {**POLICY_COLOUR, **RESTORE_COLOUR},
    "breakdown": BREAKDOWN_COLOUR,
    "causes": CAUSE_COLOUR,
    "splits": SPLIT_COLOUR,
    "phases": PHASE_COLOUR,
    "memory": MEMORY_COLOUR,
    "sources": SOURCE_COLOUR,
    "accuracy": {"within tolerance": POLICY_COLOUR["lp"], "out of it": ALERT_COLOUR},
}


def linear(colour):
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(colour, vision):
    xyz = TO_XYZ @ np.clip(VISIONS[vision] @ linear(colour), 0, 1) / D65
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def luminance(colour):
    return float(TO_XYZ[1] @ linear(colour))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_distances_are_those_of_known_colours():
    assert lab("#ff0000", "normal") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    red_green = [np.linalg.norm(lab("#d1495b", one) - lab("#5aa02c", one)) for one in VISIONS]
    assert red_green[0] > 100
    assert red_green[1] < 25, "red and green come close in deuteranopia"


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("group", NEIGHBOURS)
def test_colours_side_by_side_differ(group, vision):
    colours = {name: lab(colour, vision) for name, colour in NEIGHBOURS[group].items()}
    near = {
        pair: round(float(np.linalg.norm(colours[pair[0]] - colours[pair[1]])), 1)
        for pair in combinations(colours, 2)
    }
    assert {pair: far for pair, far in near.items() if far < LEAST_DISTANCE} == {}


def test_text_on_every_colour_has_enough_contrast():
    colours = {MUTED, *(colour for group in NEIGHBOURS.values() for colour in group.values())}
    inks = {"white": "#ffffff", "black": "#000000"}
    for colour in colours:
        assert contrast(colour, inks[text_colour(colour)]) >= 4.5, colour


def test_lines_of_policies_are_visible_on_both_backgrounds():
    theme = tomllib.loads(CONFIG.read_text())["theme"]
    for name, colour in {**POLICY_COLOUR, **RESTORE_COLOUR}.items():
        for part in ("light", "dark"):
            assert contrast(colour, theme[part]["backgroundColor"]) >= 2.1, (name, part)


def test_text_in_the_primary_colour_has_enough_contrast():
    theme = tomllib.loads(CONFIG.read_text())["theme"]
    for part in ("light", "dark"):
        assert contrast(theme[part]["primaryColor"], theme[part]["backgroundColor"]) >= 4.5
    button = re.search(r'stBaseButton-primary"\] \{ color: light-dark\((.+), (.+)\)', STYLE)
    assert contrast(button[1], theme["light"]["primaryColor"]) >= 4.5
    assert contrast(button[2], theme["dark"]["primaryColor"]) >= 4.5

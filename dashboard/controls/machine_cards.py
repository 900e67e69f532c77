"""Cards of all machines, as another way to choose one than the menu."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard.data.machines import Machine
from dashboard.session import all_machines, typed
from dashboard.text.comparison import escaped
from dashboard.text.machine import machine_card
from sim.errors import KvOverlapError
from sim.machine.profile import HardwareProfile

CARD_PX = 270
OWN, LINKED, UNIFIED, PUBLISHED = KINDS = (
    "Your machines",
    "GPUs behind their usual link",
    "CPU and GPU share one memory",
    "Machines of papers and recordings",
)


def offer_cards(key: str) -> None:
    """A button that shows the machines as cards; a card sets the menu of machines named `key`."""
    if st.button("All machines as cards", key="machine_cards"):
        choose_machine(key)


@typed(st.dialog, title="Choose a machine", width="large")
def choose_machine(key: str) -> None:
    """The cards by kind of machine."""
    for kind, found in machines_by_kind(all_machines()).items():
        st.markdown(f"**{kind}**")
        row = st.container(horizontal=True)
        for label, hardware in found.items():
            with row.container(border=True, width=CARD_PX):
                if st.button(escaped(label), key=f"card {label}", on_click=_set, args=(key, label)):
                    st.rerun()
                st.caption(machine_card(hardware))


def _set(key: str, label: str) -> None:
    st.session_state[key] = label


def machines_by_kind(machines: Sequence[Machine]) -> dict[str, dict[str, HardwareProfile]]:
    """Readable profiles by label, by kind of machine."""
    kinds: dict[str, dict[str, HardwareProfile]] = {kind: {} for kind in KINDS}
    for machine in machines:
        try:
            hardware = machine.load()
        except KvOverlapError:
            continue
        if machine.profile is not None or machine.run is not None:
            kind = OWN
        elif hardware.memory.unified:
            kind = UNIFIED
        elif machine.parts is not None:
            kind = LINKED
        else:
            kind = PUBLISHED
        kinds[kind][machine.label] = hardware
    return {kind: found for kind, found in kinds.items() if found}

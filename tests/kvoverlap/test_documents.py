"""README and docs: output shown is what the program prints; links, verbs and options exist."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, commands_in_text, excerpt, rewritten
from golden.freeze import call

from kvoverlap.cli.main import VERBS
from planner import POLICIES
from planner.restore import RESTORE_POLICIES
from sim import HardwareProfile, find_model
from sim.catalog import model_names
from sim.machine.what_if import RATES


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_succeed_and_print_what_is_shown(path):
    shown = path.read_text(encoding="utf-8")
    assert rewritten(shown) == shown, f"run: python tests/documents.py {path.name}"


def test_an_excerpt_keeps_paragraphs_above_the_gap_and_the_nearest_lines_below():
    printed = ["a 2", "b", "", "table", "row one 5 ms", "row two 7 ms", "end"]
    assert excerpt(["old"], printed) == printed
    assert excerpt(["a 1", "", "..."], printed) == ["a 2", "b", "", "..."]
    assert excerpt(["...", "row two 9 ms"], printed) == ["...", "row two 7 ms"]


@cache
def help_of(verb: str) -> str:
    status, out, err = call(f"{verb} --help")
    assert status == 0, err
    return out


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_verbs_and_options_in_running_text_exist(path):
    for verb, *words in map(str.split, commands_in_text(path.read_text(encoding="utf-8"))):
        if not verb.islower():
            continue
        for word in words:
            option = word.partition("=")[0]
            if re.fullmatch(r"--[a-z-]+", option) and option != "--help":
                assert option in help_of(verb), f"kvoverlap {verb} has no {option}"
        assert help_of(verb)


def anchors_of(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub and MkDocs spell them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.is_file(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors_of(linked), f"{path.name}: {target}"


def test_the_site_lists_every_page_once():
    made = ["index.md", "reference.md", "contributing.md"]
    listed = re.findall(r"^  - [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted([*made, *(path.name for path in (ROOT / "docs").glob("*.md"))])


def test_the_reference_holds_the_help_of_every_verb():
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))["reference"]()
    for verb in [*VERBS, "hardware import aiconfigurator"]:
        assert f"## kvoverlap {verb}\n\n```text\nUsage: kvoverlap {verb} " in reference


def in_code(text: str) -> set[str]:
    """Words of a text that are in code font."""
    return set(re.findall(r"`([^`\n]+)`", text))


def test_the_page_of_machines_names_every_rate_and_every_key_of_a_profile():
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    what_if, _, own = page.partition("## Describe your own machine")
    assert set(RATES) <= in_code(what_if)
    assert {field.name for field in fields(HardwareProfile)} <= in_code(own)


@pytest.mark.parametrize("name", ["glossary.md", "decode.md"])
def test_pages_name_every_policy_of_a_decode(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert {*POLICIES, "fixed:<tokens>"} <= in_code(page)


@pytest.mark.parametrize("name", ["glossary.md", "restore.md"])
def test_pages_name_every_policy_of_a_restore(name):
    assert {*RESTORE_POLICIES} <= in_code((ROOT / "docs" / name).read_text(encoding="utf-8"))


def test_the_page_of_models_names_every_shipped_family():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert {find_model(name).family for name in model_names()} <= in_code(page)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130

"""README and docs: output shown is what the program prints; links, verbs and options exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from golden.freeze import call

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\n(\$ kvoverlap .*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`kvoverlap ([^`]+)`")
FENCED = re.compile(r"^(?:\$ )?kvoverlap ([^#\n]+)", re.MULTILINE)

SHOWN = sorted(
    {(path.name, block) for path in DOCUMENTS for block in BLOCK.findall(path.read_text())}
)


@pytest.mark.parametrize(
    ("document", "block"), SHOWN, ids=[block.split("\n")[0] for _, block in SHOWN]
)
def test_output_shown_is_what_the_command_prints(document, block, monkeypatch):
    """Lines are compared in order; `...` marks lines that are left out."""
    monkeypatch.chdir(ROOT)
    first, *lines = block.rstrip().split("\n")
    status, out, err = call(first.removeprefix("$ kvoverlap "))
    assert status == 0, f"{document}: {err}"
    printed = iter([line.rstrip() for line in out.split("\n")])
    for line in lines:
        assert line == "..." or line.rstrip() in printed, f"{document} shows: {line}"


@cache
def help_of(verb: str) -> str:
    status, out, err = call(f"{verb} --help")
    assert status == 0, err
    return out


def commands_in(path: Path) -> list[list[str]]:
    """Words of every command line in a document, in code blocks and in running text."""
    prose, *fenced = path.read_text().split("```")
    texts, blocks = [prose, *fenced[1::2]], fenced[::2]
    found = [match for text in texts for match in INLINE.findall(text)]
    found += [match for block in blocks for match in FENCED.findall(block)]
    return [command.split() for command in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_verbs_and_options_exist(path):
    for verb, *words in commands_in(path):
        if not verb.islower():
            continue
        for word in words:
            option = word.partition("=")[0]
            if re.fullmatch(r"--[a-z-]+", option) and option != "--help":
                assert option in help_of(verb), f"kvoverlap {verb} has no {option}"
        assert help_of(verb)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130

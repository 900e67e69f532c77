"""A MkDocs hook: pages that are made when the site is built and are not committed.

`reference.md` holds `--help` of every verb, `index.md` is README.md, and `contributing.md` is
CONTRIBUTING.md.
"""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kvoverlap.cli.main import VERBS, command_line, main  # noqa: E402
from kvoverlap.cli.output import out  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

INTRODUCTION = """# Reference

What `--help` prints, for every verb.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | a gate failed |
| 2 | an expected failure, explained in one sentence |
| 3 | a defect of kvoverlap |
| 130 | interrupted |
"""
WIDTH = 100


def commands() -> list[tuple[str, ...]]:
    """Every verb, each followed by its sub-commands."""
    found: list[tuple[str, ...]] = []

    def add(path: tuple[str, ...]) -> None:
        found.append(path)
        app = command_line(path)
        for word in path:
            app = app[word]
        for name in app:
            if not name.startswith("-"):
                add((*path, name))

    for verb in sorted(VERBS):
        add((verb,))
    return found


def help_of(path: tuple[str, ...]) -> str:
    """Help of a command without the last paragraph, which is the same for all."""
    printed, width = io.StringIO(), out.width
    out.width = WIDTH
    with redirect_stdout(printed):
        main([*path, "--help"])
    out.width = width
    return printed.getvalue().rpartition("╯")[0] + "╯"


def reference() -> str:
    """The reference as one Markdown page."""
    sections = [
        f"## kvoverlap {' '.join(path)}\n\n```text\n{help_of(path)}\n```\n" for path in commands()
    ]
    return "\n".join([INTRODUCTION, *sections])


def page_of(name: str) -> str:
    """A page of the repository's root, with its links as seen from docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text).replace("](CONTRIBUTING.md)", "](contributing.md)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages; called by MkDocs."""
    from mkdocs.structure.files import File

    made = {
        "reference.md": reference(),
        "index.md": page_of("README.md"),
        "contributing.md": page_of("CONTRIBUTING.md"),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files

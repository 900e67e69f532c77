"""README and docs: the commands they show, the files they show, and what the commands print.

`python tests/documents.py` rewrites every output shown in the documents in place;
`python tests/documents.py decode.md` only those of one. Read the `git diff` before you commit it.
`tests/kvoverlap/test_documents.py` compares the same outputs.

A document is one session: its commands run in order, in an empty folder with `data`, `docs` and
`profile.json`, the profile of a recording. Conventions, which readers need not know:

    `my-gpu.json`:            a fence after a line that ends so is a file of the session
    $ kvoverlap plan ...      at the start of a fence: the rest of the fence is its output; a
                              line that ends in a backslash continues on the next
    ...                       in an output: lines are left out. Above the first `...` whole
                              paragraphs are shown, below it the most similar lines
    kvoverlap plan ...        runs, and has to succeed; its output is not shown

Commands that measure, need minutes or read what those wrote, and those of a workflow (yaml), are
parsed and do not run; a sweep with `--jobs 1` runs. Prose of an output is wrapped at 100 columns.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from golden.freeze import call  # noqa: E402

from kvoverlap.cli.main import command_line  # noqa: E402

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SESSION_PROFILE = ROOT / "data" / "recordings" / "cpu-xeon-2core" / "profile.json"
PARSED_ONLY = {
    *("profile", "run", "validate", "record", "doctor", "generate", "peers"),
    *("compare", "reproduce", "sweep"),
}
"""Verbs that measure, need minutes, or read what such a verb wrote."""
LEFT_OUT = "..."
WIDTH = 100

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"`([\w./-]+)`:\n+\Z")
COMMAND = re.compile(r"^ *(?:- )?(?:run: )?(?:\$ )?kvoverlap (\S[^#>|\n]*)", re.MULTILINE)
INLINE = re.compile(r"`kvoverlap ([^`]+)`")


def commands_in(fence: str) -> list[str]:
    """Command lines of a fence, with lines that end in a backslash joined to the next."""
    return [line.strip() for line in COMMAND.findall(re.sub(r" *\\\n\s*", " ", fence))]


def commands_in_text(text: str) -> list[str]:
    """Command lines in running text."""
    return INLINE.findall(FENCE.sub("", text))


def parse(command: str) -> None:
    """Bind the words of a command line without running it; raises CycloptsError or BadInput."""
    words = shlex.split(command)
    command_line(words).parse_args(words, exit_on_error=False, print_error=False)


def does_run(command: str) -> bool:
    verb = command.split()[0]
    short = any(option in command for option in ("--help", "--dry-run", "--jobs 1"))
    return short or verb not in PARSED_ONLY


@contextmanager
def session() -> Iterator[None]:
    """Run in an empty folder that has the project's data, its docs and a profile."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name in ("data", "docs"):
            Path(name).symlink_to(ROOT / name)
        Path("profile.json").symlink_to(SESSION_PROFILE)
        yield


def printed_by(command: str) -> list[str]:
    """Lines that a command prints; raises RuntimeError with its message if it fails."""
    status, out, err = call(command, Path.cwd())
    if status:
        raise RuntimeError(f"kvoverlap {command}: exit status {status}: {err}")
    lines: list[str] = []
    for line in map(str.rstrip, out.rstrip().split("\n")):
        is_prose = len(line) > WIDTH and "  " not in line
        lines += textwrap.wrap(line, WIDTH) if is_prose else [line]
    return lines


def excerpt(shown: list[str], printed: list[str]) -> list[str]:
    """The part of an output that a document shows."""
    if LEFT_OUT not in shown:
        return printed
    at = shown.index(LEFT_OUT)
    paragraphs = "\n".join(printed).split("\n\n")
    n_shown = len([one for one in "\n".join(shown[:at]).split("\n\n") if one])
    head = "\n\n".join(paragraphs[:n_shown]).split("\n") if n_shown else []
    gap = [""] if n_shown and shown[at - 1] == "" else []
    tail = [line if line in ("", LEFT_OUT) else nearest(line, printed) for line in shown[at:]]
    return [*head, *gap, *tail]


def nearest(line: str, printed: list[str]) -> str:
    return max(printed, key=lambda one: difflib.SequenceMatcher(None, line, one).ratio())


def rewritten(text: str) -> str:
    """The document with the outputs that its commands print now.

    Raises:
        RuntimeError: a command failed.
        CycloptsError, BadInput: a command that does not run cannot be parsed.
    """

    def rewrite(fence: re.Match[str]) -> str:
        name = FILE_NAME.search(text[: fence.start()])
        if name is not None:
            Path(name[1]).write_text(fence[2], encoding="utf-8")
        commands = commands_in(fence[2])
        if fence[2].startswith("$ kvoverlap ") and len(commands) == 1:
            given = fence[2].rstrip().split("\n")
            start = 1 + next(at for at, line in enumerate(given) if not line.endswith("\\"))
            lines = excerpt(given[start:], printed_by(commands[0]))
            return "\n".join([f"```{fence[1]}", *given[:start], *lines, "```"])
        for command in commands:
            if does_run(command) and fence[1] != "yaml":
                printed_by(command)
            else:
                parse(command)
        return fence[0]

    with session():
        return FENCE.sub(rewrite, text)


if __name__ == "__main__":
    for path in DOCUMENTS:
        if path.name in sys.argv[1:] or not sys.argv[1:]:
            path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")

"""Text to token ids and back, for `kvoverlap generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import BadFile, BadInput
from sim.files import decode_json
from sim.model.spec import ModelSpec


@dataclass(frozen=True)
class TextCodec:
    """Converts between text and token ids of one checkpoint, and knows its end-of-text tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; None where the checkpoint has none.
        eos_ids: tokens that end a text.
    """

    directory: Path
    tokenizer: Any
    eos_ids: tuple[int, ...]

    @classmethod
    def of(cls, directory: Path) -> TextCodec:
        """Read a checkpoint's tokenizer.json and end-of-text tokens.

        Raises:
            BadFile: a file exists and is invalid.
        """
        return cls(directory, _tokenizer(directory / "tokenizer.json"), _eos_ids(directory))

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the tokenizer adds.

        Raises:
            BadInput: there is no tokenizer, or the text has no token.
        """
        if self.tokenizer is None:
            raise BadInput(
                f"--prompt needs tokenizer.json, which {self.directory} does not hold; give "
                "--prompt-ids, or save the tokenizer there with transformers: AutoTokenizer"
                f".from_pretrained({str(self.directory)!r}).save_pretrained(...)."
            )
        ids: list[int] = self.tokenizer.encode(text).ids
        if not ids:
            raise BadInput(f"--prompt(={text!r}) holds no token; give some text.")
        return ids

    def until_end(self, tokens: Sequence[int]) -> list[int]:
        """The tokens up to and including the first end-of-text token."""
        for at, token in enumerate(tokens):
            if token in self.eos_ids:
                return list(tokens[: at + 1])
        return list(tokens)

    def decode(self, tokens: Sequence[int]) -> str | None:
        """The text of some tokens without special ones; None where there is no tokenizer."""
        return None if self.tokenizer is None else self.tokenizer.decode(tokens)


def read_prompt_ids(path: Path) -> list[list[int]]:
    """Prompts from a JSON list of ids, or of equally long lists of ids.

    Raises:
        BadFile: not such a list, empty, or of unequal lengths.
    """
    content = decode_json(path)
    rows = [content] if _is_row(content) else content
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise BadFile(
            f"--prompt-ids {path} must hold a JSON list of token ids, or a list of such lists, "
            "none of them empty."
        )
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise BadFile(
            f"--prompt-ids {path}: prompts have from {lengths[0]} to {lengths[-1]} ids and must be "
            "equally long; cut them, or run each length by itself."
        )
    return rows


def check_prompts(prompts: list[list[int]], max_new_tokens: int, model: ModelSpec) -> None:
    """Refuse ids outside the vocabulary, and prompts that are too long for the new tokens.

    Raises:
        BadInput: names the first invalid id, or the number of positions.
    """
    for number, row in enumerate(prompts):
        for token in row:
            if not 0 <= token < model.vocab_size:
                raise BadInput(
                    f"prompt {number}: id {token} must be from 0 to {model.vocab_size - 1}, the "
                    f"vocabulary of {model.name}; encode the prompt with its own tokenizer."
                )
    length, limit = len(prompts[0]) + max_new_tokens, model.max_positions
    if length > limit:
        raise BadInput(
            f"a prompt of {len(prompts[0])} tokens and --max-new-tokens(={max_new_tokens}) must be "
            f"at most the {limit} positions of {model.name}; shorten one of them."
        )


def _is_row(content: object) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(token, int) and not isinstance(token, bool) for token in content)
    )


def _tokenizer(path: Path) -> Any:
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise BadFile(
            f"{path} is not a tokenizer that `tokenizers` can read ({error}); download it again, "
            "or remove it and give --prompt-ids."
        ) from None


def _eos_ids(directory: Path) -> tuple[int, ...]:
    """End-of-text tokens: of generation_config.json if there is one, else of config.json."""
    path = directory / "generation_config.json"
    if not path.is_file():
        path = directory / "config.json"
    content = decode_json(path)
    found = content.get("eos_token_id") if isinstance(content, dict) else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if ids and not _is_row(ids):
        raise BadFile(f"{path}: eos_token_id(={found!r}) must be a token id or a list of them.")
    return tuple(ids)

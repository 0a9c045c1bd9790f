"""Splits a JSON list of any size into the texts of its elements, in bounded memory.

The grammar is that of the standard library: its scanner reads each element, this module moves a
window over the file. docs/design/adr/0021 says why this is not done by ijson.
"""

import codecs
import json
import re
from collections.abc import Iterator

from finetune_trainer.data.block import MAX_ROW
from finetune_trainer.data.example import bad_data

_BLOCK = 1 << 20
# The longest literal or escape sequence that the end of the window can cut.
_LONGEST_TOKEN = 16
_NUMBER_CHARACTERS = "0123456789.eE+-"
_SPACE = re.compile(r"[ \t\r\n]*")
_EXPECTED = "the file must be a list of objects; fix or remove it"


def elements(chunks: Iterator[bytes], name: str) -> Iterator[str]:
    """Yield the text of each element of the list in a file, given as chunks of bytes.

    `name` is the file's name in messages. Raises TrainerError (65) with the line and the problem.
    """
    window = _Window(chunks, name)
    opening = window.next()
    if opening != "[":
        found = f"begins with {opening!r}" if opening else "is empty"
        remedy = "a .json file must be a list of objects (one object a line is .jsonl)"
        raise bad_data(name, found, remedy)
    window.at += 1
    if window.next() == "]":
        window.at += 1
    else:
        while True:
            yield window.element()
            separator = window.next()
            if separator not in (",", "]"):
                raise window.error("Expecting ',' delimiter", window.at)
            window.at += 1
            if separator == "]":
                break
    if window.next():
        raise window.error("Extra data", window.at)


class _Window:
    """The part of the decoded file that is in memory; `at` is the read position in it."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks, self._name = chunks, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        # Only the end of a value is looked for. Numbers stay text: int() refuses 4,300 digits.
        self._scan = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
        self._text = ""
        self._lines = 0  # line ends before the window
        self._ended = False
        self.at = 0

    def next(self) -> str:
        """Skip white space; return the next character, or "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._extend():
                return ""

    def element(self) -> str:
        """Read the value that begins next and return its text."""
        self.next()
        while True:
            try:
                _, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string")
                cut = cut or error.pos >= len(self._text) - _LONGEST_TOKEN
                if not (cut and self._extend()):
                    raise self.error(error.msg, error.pos) from error
            except RecursionError:
                raise self.error("nested too deeply", self.at) from None
            else:
                if not (self._may_be_cut(end) and self._extend()):
                    found = self._text[self.at : end]
                    self.at = end
                    return found

    def error(self, problem: str, at: int) -> Exception:
        """Return an error that names the line of a position in the window."""
        line = self._lines + self._text.count("\n", 0, at) + 1
        return bad_data(self._name, f"not JSON ({problem} at line {line})", _EXPECTED)

    def _may_be_cut(self, end: int) -> bool:
        """Return whether a value that ends here may be the beginning of a longer number.

        The scanner stops before an incomplete fraction or exponent: of "0." it reads 0.
        """
        rest = self._text[end : end + _LONGEST_TOKEN]
        return end + len(rest) == len(self._text) and not rest.strip(_NUMBER_CHARACTERS)

    def _extend(self) -> bool:
        """Drop what was read and append more of the file; return False at its end.

        Appends at least as much as is kept, so that a long value is not scanned many times.
        """
        if self._ended:
            return False
        self._lines += self._text.count("\n", 0, self.at)
        kept = self._text[self.at :]
        self._text, self.at = kept, 0
        if len(kept) > MAX_ROW:
            raise self.error(f"a value of more than {MAX_ROW >> 20} MiB begins", 0)
        more: list[str] = []
        size = 0
        while size <= max(_BLOCK, len(kept)) and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            more.append(self._decoder.decode(chunk, final=not chunk))
            size += len(more[-1])
        self._text = "".join([kept, *more])
        return True

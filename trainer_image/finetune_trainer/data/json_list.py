"""The elements of a JSON list of any size, one after another, in bounded memory."""

import codecs
import json
from collections.abc import Iterator

from finetune_trainer.data.refuse import bad_data

MAX_ROW = 1 << 28  # bytes; longer ones are a missing quote or newline
_BLOCK = 1 << 20
# A literal or an escape that the window cuts in two is at most this long.
_CUT = 16
_NUMBER = "0123456789.eE+-"
_EXPECTED = "the file must be a list of objects; mend or remove it"


def elements(chunks: Iterator[bytes], name: str) -> Iterator[str]:
    """The text of each element of the list in a file whose bytes come in chunks.

    `name` is what people call the file. TrainerError (65) names line and problem.
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
            following = window.next()
            if following not in (",", "]"):
                raise window.error("Expecting ',' delimiter", window.at)
            window.at += 1
            if following == "]":
                break
    if window.next():
        raise window.error("Extra data", window.at)


class _Window:
    """The part of the text that is looked at; `at` is the place that was reached in it."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks, self._name = chunks, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._lines = 0  # before the window
        self._ended = False
        self.at = 0

    def next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self.at < len(self._text):
                if self._text[self.at] not in " \t\r\n":
                    return self._text[self.at]
                self.at += 1
            if not self._fill():
                return ""

    def element(self) -> str:
        """The text of the value that begins next."""
        self.next()
        while True:
            try:
                _, end = self._scan(self._text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string")
                cut = cut or error.pos >= len(self._text) - _CUT
                if not (cut and self._fill()):
                    raise self.error(error.msg, error.pos) from error
            except RecursionError:
                raise self.error("nested too deeply", self.at) from None
            except ValueError as error:  # Python reads no integer of more than 4,300 digits
                raise self.error(str(error).split(";")[0], self.at) from error
            else:
                # A number that the window cuts is a shorter number: "0." begins with 0.
                cut = not self._text[end:].strip(_NUMBER)
                if not (cut and self._fill()):
                    found = self._text[self.at : end]
                    self.at = end
                    return found

    def error(self, problem: str, at: int) -> Exception:
        """Names the line of a place in the window."""
        line = self._lines + self._text.count("\n", 0, at) + 1
        return bad_data(self._name, f"not JSON ({problem} at line {line})", _EXPECTED)

    def _fill(self) -> bool:
        """Look further; False at the end. At least as much again, so that long values are cheap."""
        if self._ended:
            return False
        self._lines += self._text.count("\n", 0, self.at)
        kept = self._text[self.at :]
        self.at = 0
        if len(kept) > MAX_ROW:
            raise self.error(f"a value of more than {MAX_ROW >> 20} MiB begins", 0)
        more: list[str] = []
        size = 0
        while size <= max(_BLOCK, len(kept)) and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            more.append(self._decode(chunk, kept, more))
            size += len(more[-1])
        self._text = "".join([kept, *more])
        return True

    def _decode(self, chunk: bytes, kept: str, more: list[str]) -> str:
        try:
            return self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            before = sum(text.count("\n") for text in [kept, *more])
            line = self._lines + before + error.object[: error.start].count(b"\n") + 1
            byte = error.object[error.start]
            raise bad_data(
                f"{self._name} line {line}", f"byte 0x{byte:02x} is not UTF-8", "save it as UTF-8"
            ) from error

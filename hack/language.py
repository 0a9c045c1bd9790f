"""Finds words and phrases that this project does not use: `python hack/language.py [PATH ...]`.

The project once had a vocabulary of its own, which newcomers had to learn. This check keeps it out
of code, messages, tests and documentation; docs/design/glossary.md has the terms to use instead.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".tpl", ".txt", ".sh", ".toml", ".go", ""}
# Generated, a released artifact, or the list itself.
SKIPPED = ("LICENSE", "hack/language.py", "tests/hack/test_language.py", "tests/chart/older/")


@dataclass(frozen=True)
class Ban:
    """A pattern, what to write instead, and the places where it is a term of the field."""

    pattern: str
    instead: str
    allowed: str = ""  # a regular expression for "path:line text"

    def found(self, path: str, line: str) -> list[str]:
        """Matches in a line."""
        if self.allowed and re.search(self.allowed, f"{path}:{line}"):
            return []
        return [m.group(0) for m in re.finditer(self.pattern, line, re.IGNORECASE)]


def _words(*words: str) -> str:
    # Letters only: parts of snake_case names count as words.
    return rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])"


# Where a banned word is a term of the field: the turns of a chat, the trust of certificates, ...
_CHAT = (
    r"trainer/(data|test_(render|shapes|families|stop_token|build|formats|prepare))|docs/.*data"
    r"|[Cc]hat|assistant|conversation|glossary"
)
_TRUST = r"SECURITY|security|[Uu]ntrusted|trust bound|trust store|trustRemote|trust_remote"
_PATIENCE = r"early_?stopping|earlyStopping|patience:|\.patience|patience=|patience is|- patience$"
BANS = (
    Ban(
        _words("told", "tells?", "telling"),
        "report, notify, show, send, distinguish or configure",
        r"\.tell\(\)",
    ),
    Ban(_words("said"), "report or state"),
    Ban(_words("hears?", "heard", "unheard"), "receive or process"),
    Ban(_words("last_words", "words"), "text, message, result or reason", r"[Kk]eywords?"),
    Ban(_words("lies"), "is stored, is located or is"),
    Ban(_words("mend", "mends", "mended", "mending"), "fix or correct"),
    Ban(
        _words("nobody", "whoever", "somebody", "anybody"),
        "no one, another client, a user, or name the actor",
    ),
    Ban(_words("wish", "wishes", "wished"), "request", r"if you wish"),
    Ban(_words("doomed"), "to_delete"),
    Ban(_words("strays?"), "leftover"),
    Ban(
        _words("settles?", "settled", "settling"),
        "final, flush, decide or wait",
        r"\bsettled\b",
    ),
    Ban(_words("condemn", "condemns", "condemned"), "mark as diverged"),
    Ban(r"(?<![a-z])_?(?:dis)?trust(?:ed|s)?(?![a-z_])", "verify", _TRUST),
    Ban(_words("keeper"), "retention"),
    Ban(_words("turns"), "triggers, or rephrase", _CHAT),
    Ban(_words("patiently", "patience"), "with_retries, timeout", _PATIENCE),
    Ban(r"(?<!there )(?<!there_)\bis no (?!longer\b|more\b|one\b)[a-z]", "is not a ..."),
    Ban(r"\bAbsent[:,]", "Default: ..., or: if unset, ..."),
    Ban(r", for (?:it|they|he|its|their|one|nothing|whatever|who)\b", ", because ..."),
    Ban(r"\bin vain\b", "without effect"),
)

_ANY = re.compile("|".join(f"(?:{ban.pattern})" for ban in BANS), re.IGNORECASE)
PRODUCT = ("api/", "operator/", "trainer_image/", "cli/", "client/", "local/")
_NO_VERB = re.compile(
    r"(?:a|above|all|an|any|as|at|below|between|by|each|every|false|for|from|how|in|its|it|most|no"
    r"|none|of|one|only|some|that|the|these|this|those|to|true|what|when|where|whether|which|who"
    r"|whose|why|with)",
    re.IGNORECASE,
)


def tracked() -> list[str]:
    """Every file of the repository that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(
        command, cwd=TREE, capture_output=True, text=True, check=True
    ).stdout.split("\n")


def findings(paths: list[str]) -> Iterator[str]:
    """One sentence for each match below the given paths (prefixes, relative to the tree)."""
    for name in tracked():
        path = TREE / name
        if not name or name.startswith(SKIPPED) or path.suffix not in SUFFIXES:
            continue
        if paths and not any(name == p or name.startswith(p.rstrip("/") + "/") for p in paths):
            continue
        if not path.is_file():
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if not _ANY.search(line):
                continue
            for ban in BANS:
                for match in ban.found(name, line):
                    yield f"{name}:{number}: {match!r}: write {ban.instead}"


def docstrings(paths: list[str]) -> Iterator[str]:
    """One sentence for each function of the product whose docstring does not begin with a verb.

    Properties are described like attributes, by a noun.
    """
    for name in tracked():
        if not name.startswith(PRODUCT) or not name.endswith(".py") or not (TREE / name).is_file():
            continue
        if paths and not any(name == p or name.startswith(p.rstrip("/") + "/") for p in paths):
            continue
        for node in ast.walk(ast.parse((TREE / name).read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            first = re.match(r"[A-Za-z']+", text)
            if _is_property(node) or not text:
                continue
            if first is None or _NO_VERB.fullmatch(first[0]):
                yield f"{name}:{node.lineno}: {text.splitlines()[0]!r}: begin with a verb"


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "fixture"})


def main(paths: list[str]) -> int:
    """Print the findings; 1 if there are any."""
    found = [*findings(paths), *docstrings(paths)]
    for finding in found:
        print(finding)
    print(f"{len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Label selectors in the syntax of Kubernetes, which choose the jobs of this operator.

The API server applies the selector to lists and watches. This module applies the same rules to
objects that are read one by one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?P<key>(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME})"
_VALUE = rf"(?:{_NAME})?"
_FORMS = {
    "in": re.compile(rf"{_KEY}\s*={{1,2}}\s*(?P<values>{_VALUE})"),
    "notin": re.compile(rf"{_KEY}\s*!=\s*(?P<values>{_VALUE})"),
    "in ()": re.compile(rf"{_KEY}\s+in\s*\((?P<values>[^()]*)\)"),
    "notin ()": re.compile(rf"{_KEY}\s+notin\s*\((?P<values>[^()]*)\)"),
    "exists": re.compile(_KEY),
    "absent": re.compile(rf"!\s*{_KEY}"),
}
_COMMA = re.compile(r",(?![^(]*\))")  # not those in parentheses
_ALLOWED = "key=value, key!=value, key in (a,b), key notin (a,b), key, !key, joined by commas"


@dataclass(frozen=True)
class Requirement:
    """One requirement of a selector; all of them must be met."""

    key: str
    operator: str  # in | notin | exists | absent
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels meet it. As on the API server, `notin` includes a missing label."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "absent":
            return self.key not in labels
        found = self.key in labels and labels[self.key] in self.values
        return found if self.operator == "in" else not found


@dataclass(frozen=True)
class Selector:
    """A label selector. An empty one selects everything."""

    text: str = ""
    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Parse a selector; ValueError names the wrong term and what is allowed."""
        if not text.strip():
            return cls()
        return cls(text.strip(), tuple(_requirement(term.strip()) for term in _COMMA.split(text)))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether an object with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)


def _requirement(term: str) -> Requirement:
    for form, pattern in _FORMS.items():
        if found := pattern.fullmatch(term):
            values = [v.strip() for v in found.groupdict().get("values", "").split(",")]
            if all(re.fullmatch(_VALUE, value) for value in values):
                return Requirement(found["key"], form.removesuffix(" ()"), frozenset(values))
    raise ValueError(f"the term {term!r} is not a valid label selector; allowed: {_ALLOWED}")

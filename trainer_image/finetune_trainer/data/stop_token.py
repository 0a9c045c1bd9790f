"""Where a chat template ends an assistant's turn: what a server must stop at.

A base model's generation_config.json often names only the end of a document. A chat model that is
served with it never stops.
"""

from collections.abc import Callable, Iterable

Messages = list[dict[str, str]]
_ANSWER = "Quokka"  # appears in no template


def end_of_turn(render: Callable[[Messages], str], special: Iterable[str]) -> str | None:
    """The special token with which `render` (a chat template) ends an assistant's turn.

    The first one after the answer that ends a conversation; where nothing ends it there, the first
    one between an answer and the next question (some templates open the next turn only). None when
    the template refuses a conversation or ends turns without a special token.
    """
    special = list(special)
    for question in ([], [{"role": "user", "content": "Why?"}]):
        answered = [
            {"role": "user", "content": "What lives there?"},
            {"role": "assistant", "content": _ANSWER},
        ]
        try:
            text = render([*answered, *question])
        except Exception:  # templates raise whatever they like; it has no turns to end
            return None
        found = first(text.rpartition(_ANSWER)[2], special)
        if found:
            return found
    return None


def first(text: str, special: Iterable[str]) -> str | None:
    """The special token that stands first in a text; of two at one place the longer one."""
    found = [(text.find(token), -len(token), token) for token in special if token in text]
    return min(found)[2] if found else None

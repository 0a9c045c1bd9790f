"""The token with which a chat template ends an assistant's turn, at which a server must stop.

The generation_config.json of a base model often names only the end of a document. A chat model that
is served with it never stops.
"""

from collections.abc import Callable, Iterable

Messages = list[dict[str, str]]
_ANSWER = "Quokka"  # appears in no template


def end_of_turn(render: Callable[[Messages], str], special: Iterable[str]) -> str | None:
    """Return the special token with which `render` (a chat template) ends an assistant's turn.

    This is the first special token after the answer that ends a conversation. If nothing ends the
    conversation, it is the first one between an answer and the next question (some templates only
    open the next turn). Returns None if the template refuses the conversation or ends turns without
    a special token.
    """
    special = list(special)
    for question in ([], [{"role": "user", "content": "Why?"}]):
        answered = [
            {"role": "user", "content": "What lives there?"},
            {"role": "assistant", "content": _ANSWER},
        ]
        try:
            text = render([*answered, *question])
        except Exception:  # a template can raise any error; then it has no turns to end
            return None
        found = first(text.rpartition(_ANSWER)[2], special)
        if found:
            return found
    return None


def first(text: str, special: Iterable[str]) -> str | None:
    """Return the special token that comes first in a text; at one position the longest one."""
    found = [(text.find(token), -len(token), token) for token in special if token in text]
    return min(found)[2] if found else None

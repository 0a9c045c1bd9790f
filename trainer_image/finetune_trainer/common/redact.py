"""Text of somebody else's library without the secrets that it may repeat (pure)."""

import re
from collections.abc import Mapping

# Greedy: a password may hold an @ that nobody escaped.
_USERINFO = re.compile(r"://[^/\s]+@")
# What libraries call the variables that a Secret is meant for.
_SECRET = ("_KEY", "_TOKEN", "_PASSWORD", "_SECRET")
_SHORTEST = 4  # characters; a shorter value says nothing, and would be found in every word


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """`text` with *** for what stands before the @ of an address and for values of secrets.

    A variable is a secret by the end of its name, as in WANDB_API_KEY or MLFLOW_TRACKING_PASSWORD.
    """
    secrets = {
        value.strip()
        for name, value in environment.items()
        if name.upper().endswith(_SECRET) and len(value.strip()) >= _SHORTEST
    }
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, "***")
    return _USERINFO.sub("://***@", text)

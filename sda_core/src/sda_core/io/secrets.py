"""Credentials in URLs, which are neither written nor shown."""

from __future__ import annotations

import re

#: A password, or what is long enough to be a token, before the host; and a secret in the query.
#: A password may hold what it should not, such as a slash; a port with a path is none.
_USER = r"(?<=://)(?:[^\s/@:]*:(?!\d+/)[^\s@]+|[^\s/@:]{20,})(?=@)"
_NAMES = "token|secret|passw|pwd|key|sig|credential|auth"
_QUERY = rf"(://\S*?[?&;][^\s=&;]*(?:{_NAMES})[^\s=&;]*=)(?!\*\*\*)[^\s&;'\"]+"
_SECRETS = (re.compile(_USER), re.compile(_QUERY, re.IGNORECASE))


def has_secret(text: str) -> bool:
    """Whether a text has a URL with a password, key or token."""
    return redact(text) != text


def redact(text: str) -> str:
    """A text in whose URLs passwords, keys and tokens are replaced by ``***``."""
    user, query = _SECRETS
    shown = user.sub("***", text)
    while (more := query.sub(r"\1***", shown)) != shown:  # each round finds one of a URL
        shown = more
    return shown

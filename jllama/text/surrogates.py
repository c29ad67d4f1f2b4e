"""Halves of surrogate pairs, which Python's texts may hold and UTF-8 may not."""

import re

SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Half a surrogate pair (from a file name or a broken escape) has no UTF-8 form."""
    if has_utf8_form(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def has_utf8_form(text: str) -> bool:
    """Much faster than a search for surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

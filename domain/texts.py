"""What a text of a command, an import or a filter may be, and the one form in which it is kept.

Composed characters (NFC), so that what looks the same is the same, and no white space at the ends.
"""

from unicodedata import category, normalize

LINE_BREAKS = frozenset("\n\t")
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They make a text look like another."""
CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
INVISIBLE = CONTROL | {"Cf", "Zs", "Cn", "Co"}


def normalized(text: str) -> str:
    return text.strip() if text.isascii() else normalize("NFC", text).strip()


def has_control_characters(text: str, *, lines: bool = False) -> bool:
    """Also halves of surrogate pairs, and changes of direction. `lines`: line breaks and tabs are none."""
    if text.isascii() and text.isprintable():
        return False
    allowed = LINE_BREAKS if lines else frozenset[str]()
    return any((category(char) in CONTROL and char not in allowed) or char in DIRECTIONS for char in text)


def is_visible(text: str) -> bool:
    """Whether there is anything in it that can be seen."""
    return any(category(char) not in INVISIBLE for char in text)

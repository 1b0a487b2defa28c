"""Text of others on a terminal: what it says, and nothing that the terminal would act on."""


def printable(text: str) -> str:
    """Every character that is not visible as its escape: control characters, line breaks, changes of direction."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

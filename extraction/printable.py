"""Lines for a terminal, of names and texts that somebody else may have chosen."""


def printable(line: str) -> str:
    """Return the line with every character escaped that a terminal would not show as it is.

    A run's model name, say, may hold sequences that clear the screen, or a line break and a verdict
    of its own.
    """
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )

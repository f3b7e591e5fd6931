"""Lines for a terminal, safe for names and texts that somebody else may have chosen."""


def printable(line: str) -> str:
    """Return the line with every character escaped that a terminal would not simply show.

    A run's model name, for example, may hold sequences that clear the screen, or a line break and a
    false verdict.
    """
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )

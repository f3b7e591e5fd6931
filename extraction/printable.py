"""Make lines safe to print, whatever names and texts they hold."""


def printable(line: str) -> str:
    """Return the line with control characters and other unprintable characters escaped.

    A run's model name, for example, may hold a sequence that clears the screen, or a line break
    followed by a false verdict.
    """
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )

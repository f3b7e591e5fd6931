"""Exceptions of the commands."""


class InputError(ValueError):
    """A setting or input file that cannot be used: what, where, and what would be right."""


class SelfCheckError(RuntimeError):
    """Rows differ from the same rows computed alone."""

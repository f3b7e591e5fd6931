"""Exceptions of this package; commands turn them into exit status 2."""


class ModelError(ValueError):
    """A checkpoint, configuration or hook point that cannot be used; the message says what can."""


class NotCapturedError(ModelError, KeyError):
    """A name that matches none, or several, of the captured hook points."""

    def __str__(self) -> str:
        """Return the message; `KeyError` would quote it."""
        return ModelError.__str__(self) if len(self.args) != 1 else str(self.args[0])

"""What this package refuses, as one exception type a command can turn into exit status 2."""


class ModelError(ValueError):
    """A checkpoint, configuration or hook point that cannot be used, and what would be right."""


class NotCapturedError(ModelError, KeyError):
    """A key that names none, or several, of the hook points that are captured."""

    def __str__(self) -> str:
        """The message as it is; `KeyError` would quote it."""
        return ModelError.__str__(self) if len(self.args) != 1 else str(self.args[0])

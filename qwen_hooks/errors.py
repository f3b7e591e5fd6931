"""What this package refuses, as one exception type a command can turn into exit status 2."""


class ModelError(ValueError):
    """A checkpoint, configuration or hook point that cannot be used, and what would be right."""

"""What the store refuses or cannot do."""


class StoreError(ValueError):
    """Rows that do not fit, or a folder that cannot be written to; says what would be right."""


class ExistingRunError(StoreError):
    """The folder already holds a run, which nothing may overwrite."""

"""Settings of the commands as frozen dataclasses, and their command lines."""

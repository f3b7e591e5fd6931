"""The real model of the demo, converted once for the tests of a process."""

import pytest

from examples.smollm2 import GgufError, convert, find_gguf


@pytest.fixture(scope="session")
def source():
    """The GGUF file."""
    try:
        return find_gguf()
    except GgufError as error:  # `make test` installs it
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def folder(source, tmp_path_factory):
    """The converted checkpoint."""
    folder = tmp_path_factory.mktemp("smollm2")
    convert(source, folder)
    return folder

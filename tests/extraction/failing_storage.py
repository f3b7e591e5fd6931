"""A local folder whose writes can fail."""

import errno
from collections.abc import Container
from pathlib import Path

from extraction.storage.local import LocalStorage


class FailingStorage(LocalStorage):
    """Some writes fail.

    Args:
        folder: of the run.
        failing: numbers of the writes that fail, from 1; each file is one.

    Attributes:
        writes: how many were tried.
    """

    def __init__(self, folder: Path, failing: Container[int]):
        super().__init__(folder)
        self._failing = failing
        self.writes = 0

    def put_new(self, name, data, attributes=None):
        self._count()
        super().put_new(name, data, attributes)

    def replace(self, name, data):
        self._count()
        super().replace(name, data)

    def replace_all(self, files):
        def counted():
            for name, data in files:
                self._count()
                yield name, data

        super().replace_all(counted())

    def _count(self) -> None:
        self.writes += 1
        if self.writes in self._failing:
            raise OSError(errno.EIO, "the disk is failing")

"""Records in array_record files, by random access; what is damaged is said by name."""

import bisect
import itertools
import pathlib
from collections.abc import Sequence

from array_record.python import array_record_data_source, array_record_module

from bidi.data.sources import DataError

_CHUNK = 4096


class Records:
    """The records of files, one after the other."""

    def __init__(self, paths: Sequence[pathlib.Path], remedy: str):
        """Opens the files.

        Args:
            paths: one at least, in order.
            remedy: what to do about a damaged one, for the error.

        Raises:
            DataError: one is damaged.
        """
        self._paths, self._remedy = paths, remedy
        counts = [self._count(path) for path in paths]
        self._ends = list(itertools.accumulate(counts))
        self._source = array_record_data_source.ArrayRecordDataSource(
            [f"{path}[0:{count}]" for path, count in zip(paths, counts, strict=True)]
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]:
        """Several at once: 50 times faster than one by one.

        Raises:
            DataError: a file is damaged.
        """
        try:
            return self._source.__getitems__(indices)
        except RuntimeError as error:
            raise self._damaged(self._file_of(indices), error) from error

    def check(self) -> None:
        """Reads all of them.

        Raises:
            DataError: a file is damaged.
        """
        for start in range(0, len(self), _CHUNK):
            self.__getitems__(range(start, min(start + _CHUNK, len(self))))

    def _count(self, path: pathlib.Path) -> int:
        try:
            reader = array_record_module.ArrayRecordReader(str(path))
            count = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise self._damaged(path, error) from error
        return count

    def _file_of(self, indices: Sequence[int]) -> pathlib.Path:
        """That of the first of these records that cannot be read, else of the first."""
        for index in indices:
            try:
                self._source.__getitems__([index])
            except RuntimeError:
                return self._paths[bisect.bisect_right(self._ends, index)]
        return self._paths[bisect.bisect_right(self._ends, indices[0])]

    def _damaged(self, path: pathlib.Path, error: RuntimeError) -> DataError:
        return DataError(f"{path} is damaged, cut off perhaps ({str(error)[:150]}): {self._remedy}")

"""Records in array_record files, by random access; a damaged file is said by name."""

import bisect
import errno
import itertools
import os
from collections.abc import Sequence
from typing import Any

from array_record.python import array_record_data_source, array_record_module
from etils import epath

from bidi.errors import DataError
from bidi.files import fetched, in_bucket, on_disk

_CHUNK = 4096
# array_record finds single records fast only in groups of one; so small they do not compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def record_writer(path: os.PathLike[str]) -> Any:
    """Writes records into a file of this machine, for random access."""
    on_disk(path).parent.mkdir(exist_ok=True)
    return array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)


class Records:
    """The records of files, one after the other."""

    def __init__(self, paths: Sequence[epath.Path], remedy: str):
        """Opens the files.

        Args:
            paths: one at least, in order.
            remedy: what to do about a damaged one, for the error.

        Raises:
            DataError: one is damaged.
        """
        self._paths, self._remedy = paths, remedy
        # array_record reads buckets by a client of its own, one record a request.
        self._files = [fetched(path) for path in paths]
        counts = [self._count(path, file) for path, file in zip(paths, self._files, strict=True)]
        self._ends = list(itertools.accumulate(counts))
        self._source = array_record_data_source.ArrayRecordDataSource(
            [f"{file}[0:{count}]" for file, count in zip(self._files, counts, strict=True)]
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
            number = self._file_of(indices)
            raise self._damaged(self._paths[number], self._files[number], error) from error

    def check(self) -> None:
        """Reads all of them.

        Raises:
            DataError: a file is damaged.
        """
        for start in range(0, len(self), _CHUNK):
            self.__getitems__(range(start, min(start + _CHUNK, len(self))))

    def _count(self, path: epath.Path, file: os.PathLike[str]) -> int:
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            count = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise self._damaged(path, file, error) from error
        return count

    def _file_of(self, indices: Sequence[int]) -> int:
        """That of the first of these records that cannot be read, else of the first."""
        for index in indices:
            try:
                self._source.__getitems__([index])
            except RuntimeError:
                return bisect.bisect_right(self._ends, index)
        return bisect.bisect_right(self._ends, indices[0])

    def _damaged(self, path: epath.Path, file: os.PathLike[str], error: RuntimeError) -> DataError:
        if os.strerror(errno.EMFILE) in str(error):
            return DataError(f"{path}: too many files are open, raise their limit (ulimit -n)")
        remedy = self._remedy
        if in_bucket(path):
            remedy = f"delete its copy here, {file}, and try again; if that does not help, {remedy}"
        return DataError(f"{path} is damaged, cut off perhaps ({str(error)[:150]}): {remedy}")

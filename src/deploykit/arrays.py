"""Arrays in files as strangers hand them over: what a file claims is compared with what it holds before memory is taken.

A few kilobytes can claim to be terabytes: by a compressed member of an archive, or by the shape in an array's header.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import BadInputError

SUFFIX: Final = ".npy"
#: Bytes that a file may hold unpacked: this many whatever its size, and this many times its size. Weights and activations are
#: hardly smaller when they are compressed, images by less than this.
UNPACKED_LEAST: Final = 1 << 28
UNPACKED_RATIO: Final = 64
#: How numpy and PyTorch write members. Decoders of other methods take memory as a file's bytes tell them.
METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Header:
    """What an array claims to be before a value is read.

    Attributes:
        shape: Its sizes.
        is_fortran: Its first axis is the one whose values lie side by side.
        dtype: Of a value.
        offset: Byte at which its values start.
    """

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @classmethod
    def read(cls, stream: IO[bytes]) -> Header:
        """Read it from the start of an .npy.

        Raises:
            ValueError: Damaged, or of a version for records.
        """
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} of the format is for arrays of records")
        return cls(shape, is_fortran, dtype, stream.tell())

    @property
    def nbytes(self) -> int:
        """Bytes that the values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> NDArray[Any]:
        """Return the values, as a view of the bytes of a whole .npy.

        Raises:
            ValueError: They are more or fewer than the header says, or objects, which would be unpickled.
        """
        if self.dtype.hasobject:
            raise ValueError(f"an array of {self.dtype} is never unpickled")
        if len(data) - self.offset != self.nbytes:
            raise ValueError(
                f"{self.dtype} {list(self.shape)} is {self.nbytes:,} bytes; it holds {len(data) - self.offset:,}"
            )
        flat = np.frombuffer(data, self.dtype, offset=self.offset) if self.nbytes else np.empty(0, self.dtype)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


def unpacked_limit(path: Path) -> int:
    """Return how many bytes the file at `path` may hold unpacked."""
    return max(UNPACKED_LEAST, UNPACKED_RATIO * path.stat().st_size)


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that unpacks to far more than it is, or whose members are packed as none of ours are.

    Raises:
        BadInputError: It is such a one.
    """
    infos = archive.infolist()
    strange = [info.filename for info in infos if info.compress_type not in METHODS]
    if strange:
        raise BadInputError(f"{path}: {strange[0]!r} in it is packed by another method than deflate, which isn't read")
    total, most = sum(info.file_size for info in infos), unpacked_limit(path)
    if total > most:
        raise BadInputError(
            f"{path} would unpack to {total:,} bytes; at most {most:,} are read from a file of its size"
        )

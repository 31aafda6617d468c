"""How images lie in a shard: the bytes of each, one fixed-size binary a row, their shape beside the column.

Arrow's own tensor type would be stored as a list of numbers, which takes Parquet twenty times as long to read and as
much scratch memory as fifteen shards. N images of C, H, W.
"""

import json
from math import prod

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Pixels = npt.NDArray[np.uint8]

SHAPE = b"shape"


def packed(images_NCHW: Pixels, name: str) -> tuple[pa.Field, pa.FixedSizeBinaryArray]:
    """A column of these images."""
    count, *shape = images_NCHW.shape
    kind = pa.binary(prod(shape))
    field = pa.field(name, kind, metadata={SHAPE: json.dumps(shape)})
    data = pa.py_buffer(np.ascontiguousarray(images_NCHW))
    return field, pa.FixedSizeBinaryArray.from_buffers(kind, count, [None, data])


def shape_of(field: pa.Field) -> tuple[int, int, int] | None:
    """(C, H, W) of the images in a column; None where it does not hold any in this way."""
    noted = (field.metadata or {}).get(SHAPE)
    if noted is None or not pa.types.is_fixed_size_binary(field.type):
        return None
    channels, height, width = json.loads(noted)
    return channels, height, width


def unpacked(column: pa.FixedSizeBinaryArray, shape: tuple[int, int, int]) -> Pixels:
    """The images of a column, (N, C, H, W), in the column's own memory."""
    size = prod(shape)
    data = np.frombuffer(column.buffers()[1], np.uint8, len(column) * size, column.offset * size)
    return data.reshape(len(column), *shape)

"""Parquet footers, cut so that one row group can be read without parsing the others.

A footer is a struct in Thrift's compact protocol. Its second field is the schema, its third the
number of rows, its fourth the list of row groups. Of that list one struct is as good as all.
"""

from __future__ import annotations

from dataclasses import dataclass

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY = 0, 1, 2, 3, 7, 8
_VARINTS = (4, 5, 6)
_LIST, _SET, _STRUCT = 9, 10, 12
_NUM_ROWS, _ROW_GROUPS = 3, 4
_LONG_LIST = 15


@dataclass(frozen=True, slots=True)
class FooterCut:
    """Where the parts of a footer lie.

    Bytes ``[0, head)`` come before the number of rows, those from ``tail`` on after the row
    groups; each of ``groups`` is the (begin, end) of one row group.
    """

    head: int
    groups: tuple[tuple[int, int], ...]
    tail: int


def cut_footer(footer: bytes) -> FooterCut:
    """Find the row groups in a footer that Arrow has just written.

    Raises:
        ValueError: the fields are not in the order in which Arrow writes them.
    """
    position, field, head = 0, 0, -1
    groups: list[tuple[int, int]] = []
    while footer[position] != _STOP:
        begin, step, kind = position, footer[position] >> 4, footer[position] & 15
        if step == 0:
            raise ValueError(f"field {field} of a Parquet footer is followed by a far one")
        position, field = position + 1, field + step
        if field == _NUM_ROWS:
            head = begin
        if field == _ROW_GROUPS:
            count, position = _list_length(footer, position)
            for _ in range(count):
                end = _skip(footer, position, _STRUCT)
                groups.append((position, end))
                position = end
            if head < 0 or step != 1:
                break
            return FooterCut(head, tuple(groups), position)
        position = _skip(footer, position, kind)
    raise ValueError("a Parquet footer without row groups after its number of rows")


def footer_of_group(head: bytes, group: bytes, tail: bytes, num_rows: int) -> bytes:
    """The end of a Parquet file, from its footer on, that has one row group of ``num_rows``."""
    rows = bytes([1 << 4 | _VARINTS[-1]]) + _varint(2 * num_rows)
    groups = bytes([1 << 4 | _LIST, 1 << 4 | _STRUCT]) + group
    footer = head + rows + groups + tail
    return footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _skip(data: bytes, position: int, kind: int) -> int:
    """The position behind a value of ``kind``."""
    if kind in _VARINTS:
        while data[position] & 0x80:
            position += 1
        return position + 1
    if kind == _BINARY:
        length, position = _read_varint(data, position)
        return position + length
    if kind == _STRUCT:
        while data[position] != _STOP:
            header = data[position]
            position += 1
            if not header >> 4:
                position = _skip(data, position, _VARINTS[0])
            if header & 15 not in (_TRUE, _FALSE):
                position = _skip(data, position, header & 15)
        return position + 1
    if kind in (_LIST, _SET):
        item = data[position] & 15
        count, position = _list_length(data, position)
        if item in (_TRUE, _FALSE):
            return position + count
        for _ in range(count):
            position = _skip(data, position, item)
        return position
    if kind in (_BYTE, _DOUBLE):
        return position + (1 if kind == _BYTE else 8)
    raise ValueError(f"a Parquet footer holds a value of kind {kind}")


def _list_length(data: bytes, position: int) -> tuple[int, int]:
    count = data[position] >> 4
    return (count, position + 1) if count != _LONG_LIST else _read_varint(data, position + 1)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1


def _varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])

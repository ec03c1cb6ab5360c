"""Further columns of a corpus: one spelling and one type each, also beside those of a cache."""

from collections.abc import Collection

import pyarrow as pa

from schemas.columns import common_type, type_of
from schemas.errors import CorpusError
from schemas.video import VideoRef

_EXACT = 2**53
"""Up to here a double holds every whole number."""


def further_columns(refs: Collection[VideoRef]) -> pa.Schema:
    """The further columns of all ``refs``, each of the type that fits its values.

    Raises:
        CorpusError: two spellings of one name, values whose types do not join, or whole numbers
            among decimal ones that a double would round.
    """
    spelling: dict[str, str] = {}
    found: dict[str, tuple[pa.DataType, VideoRef]] = {}
    joined_doubles: set[str] = set()
    for ref in refs:
        for name, value in ref.extra.items():
            spelled = spelling.setdefault(name.lower(), name)
            if spelled != name:
                raise CorpusError(
                    f"columns {spelled!r} and {name!r} (of {ref.video_id!r}) are one column to "
                    "SQL. Spell them alike."
                )
            kind = type_of(value)
            known, other = found.setdefault(name, (kind, ref))
            if known == kind:
                continue
            joined = common_type(known, kind)
            if joined is None:
                raise CorpusError(
                    f"column {name!r} holds values of two types: {other.extra[name]!r} for "
                    f"{other.video_id!r} and {value!r} for {ref.video_id!r}. Make them one type."
                )
            found[name] = (joined, other if joined == known else ref)
            if joined == pa.float64() and pa.null() not in (known, kind):
                joined_doubles.add(name)
    for name in joined_doubles:
        _require_exact(name, refs)
    return pa.schema([(name, kind) for name, (kind, _) in found.items()])


def _require_exact(name: str, refs: Collection[VideoRef]) -> None:
    for ref in refs:
        value = ref.extra.get(name)
        number = value.as_py() if isinstance(value, pa.Scalar) else value
        if isinstance(number, int) and abs(number) > _EXACT:
            raise CorpusError(
                f"column {name!r} holds {number} for {ref.video_id!r} beside decimal numbers, with "
                "which it would be rounded. Store the column as text."
            )


def require_same_columns(corpus: pa.Schema, cache: pa.Schema, *, where: str) -> None:
    """Compare the further columns of a corpus with those a cache has from earlier builds.

    Args:
        corpus: the further columns, as ``further_columns`` gives them.
        cache: the columns of the index, further ones among them.
        where: the cache, for messages.

    Raises:
        CorpusError: a column that SQL could not tell from another, or values that do not go into
            one column with those that are there.
    """
    known = {field.name.lower(): field for field in cache}
    for field in corpus:
        there = known.get(field.name.lower(), field)
        if there.name != field.name:
            raise CorpusError(
                f"column {field.name!r} of the corpus and column {there.name!r} of the cache "
                f"{where} are one column to SQL. Rename it to {there.name!r} in the manifest."
            )
        if common_type(there.type, field.type) is None:
            raise CorpusError(
                f"column {field.name!r} of the corpus is of type {field.type}, in the cache "
                f"{where} it is {there.type}. Make it the same type, or give it another name."
            )

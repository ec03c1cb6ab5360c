"""Further columns of a corpus: one spelling and one type each, also beside those of a cache."""

from collections.abc import Iterable

import pyarrow as pa

from schemas.columns import common_type, type_of
from schemas.errors import CorpusError
from schemas.video import VideoRef


def further_columns(refs: Iterable[VideoRef]) -> pa.Schema:
    """The further columns of all ``refs``, each of the type that fits its values.

    Raises:
        CorpusError: two spellings of one name, or values whose types do not join.
    """
    spelling: dict[str, str] = {}
    found: dict[str, tuple[pa.DataType, VideoRef]] = {}
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
    return pa.schema([(name, kind) for name, (kind, _) in found.items()])


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

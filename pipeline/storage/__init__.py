"""Where a cache lies: a folder, or a prefix of an object store, with the same few operations."""

from pipeline.storage.base import RangeReader, Storage, StoredFile, is_outage
from pipeline.storage.location import Location, is_remote, open_storage, scheme_of

__all__ = [
    "Location",
    "RangeReader",
    "Storage",
    "StoredFile",
    "is_outage",
    "is_remote",
    "open_storage",
    "scheme_of",
]

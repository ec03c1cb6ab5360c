"""Every error tokenreel raises on purpose.

Each message says which video or file, what was found, what was expected, and what to do.

    TokenreelError
    +-- ConfigError (ValueError)             a setting is unknown or out of range
    +-- CorpusError (ValueError)             the list of videos cannot be made
    +-- ModelError (ValueError)              a checkpoint cannot be loaded or is not supported
    +-- DecodeError (OSError)                one video cannot be decoded; see ``.kind``
    +-- PreprocessError (ValueError)         one video does not fit the model's preprocessing rules
    +-- GridMismatchError (ValueError)       token count and grid disagree
    +-- FusionError (ValueError)             a fusion method cannot do what was asked
    +-- PrefillError (ValueError)            a prompt cannot be built from these tokens
    +-- QueryError (ValueError)              SQL over the index failed
    +-- FailureBudgetExceeded                too many videos failed; the build stopped
    +-- WorkerDiedError                      a worker process died with a video alone in it
    +-- CacheError
        +-- CacheNotFoundError (FileNotFoundError)
        +-- CacheMismatchError (ValueError)  the cache was built with another configuration
        +-- VideoNotCachedError (KeyError)   no such video, or it failed
        +-- CacheUnreachableError (OSError)  it cannot be read now; nothing is known to be lost
        +-- BudgetError (ValueError)         the stored order cannot serve this budget or threshold
        +-- CacheCorruptError (OSError)      what is on disk is not what was committed
            +-- FormatVersionError           another format version
            +-- FingerprintError             a row of another configuration
            +-- IndexCorruptError            a manifest, fragment or row that cannot be read
            +-- ShardNameError               a shard name that is not a digest
            +-- ShardMissingError            the shard file is gone
            +-- BoundsError                  the byte range does not fit the file or the layout
            +-- DtypeError                   a tensor type outside the format
            +-- ShapeError                   tensor shapes that contradict each other
            +-- ShortReadError               fewer bytes than the index promises
            +-- ChecksumError                the bytes are not those written
"""

DECODE_KINDS = (
    "missing",
    "unreadable",
    "not_a_video",
    "no_video",
    "unsupported_codec",
    "encrypted",
    "truncated",
    "corrupt_frames",
    "mixed_sizes",
    "too_large",
    "timeout",
    "decoder_crash",
)
"""Why a video could not be decoded, as stored in the index column ``error_kind``."""


class TokenreelError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is one line for a person."""


class ConfigError(TokenreelError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class CorpusError(TokenreelError, ValueError):
    """The list of videos cannot be made."""


class ModelError(TokenreelError, ValueError):
    """A checkpoint cannot be loaded, or its architecture is not supported."""


class DecodeError(TokenreelError, OSError):
    """One video cannot be decoded; ``kind`` is one of ``DECODE_KINDS``."""

    def __init__(self, kind: str, message: str) -> None:
        # OSError would read two positional arguments as (errno, strerror); args stay picklable.
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


class PreprocessError(TokenreelError, ValueError):
    """One video does not fit the model's preprocessing rules."""


class GridMismatchError(TokenreelError, ValueError):
    """The number of tokens and the grid disagree."""


class FusionError(TokenreelError, ValueError):
    """A fusion method cannot do what was asked."""


class PrefillError(TokenreelError, ValueError):
    """A prompt cannot be built from these tokens."""


class QueryError(TokenreelError, ValueError):
    """SQL over the index failed."""


class FailureBudgetExceeded(TokenreelError):  # noqa: N818 - it says what happened, as StopIteration does
    """Too many videos failed; the build stopped early."""


class WorkerDiedError(TokenreelError):
    """A worker process died while this video was alone in it."""


class CacheError(TokenreelError):
    """Base of errors about a cache folder."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no cache at this place."""


class CacheMismatchError(CacheError, ValueError):
    """The cache was built with another configuration."""


class VideoNotCachedError(CacheError, KeyError):
    """The cache holds no tokens for this video."""

    def __str__(self) -> str:
        return str(self.args[0])


class CacheUnreachableError(CacheError, OSError):
    """The place where the cache lies cannot be read now; nothing is known to be lost."""


class BudgetError(CacheError, ValueError):
    """The stored row order cannot serve this budget or threshold."""


class CacheCorruptError(CacheError, OSError):
    """What is on disk is not what was committed."""


class FormatVersionError(CacheCorruptError):
    """The cache has a format version this reader does not know."""


class FingerprintError(CacheCorruptError):
    """A row belongs to another configuration than the manifest."""


class IndexCorruptError(CacheCorruptError):
    """A manifest, an index fragment or a row cannot be read."""


class ShardNameError(CacheCorruptError):
    """A shard name in the index is not a digest."""


class ShardMissingError(CacheCorruptError):
    """A shard named by the index does not exist."""


class BoundsError(CacheCorruptError):
    """A byte range does not fit its file or its layout."""


class DtypeError(CacheCorruptError):
    """A tensor type outside the format."""


class ShapeError(CacheCorruptError):
    """Tensor shapes contradict each other or the row."""


class ShortReadError(CacheCorruptError):
    """Fewer bytes than the index promises."""


class ChecksumError(CacheCorruptError):
    """The bytes are not those written."""

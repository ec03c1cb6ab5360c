"""Encode every video once; answer every later question from the cache.

    cache = tokenreel.open("cache/")
    video = cache.load("a/b.mp4", budget=0.25)
    inputs = video.prefill(tokenizer, "What falls off the table?")
    model.generate(**inputs, max_new_tokens=64)

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from schemas.config import BuildConfig
from schemas.errors import TokenreelError

if TYPE_CHECKING:
    from pipeline.cache import CachedVideo, TokenCache
    from pipeline.cache import open_cache as open  # noqa: A004 - tokenreel.open reads well
    from pipeline.prefill import build_prefill as prefill
    from pipeline.session import Session

__version__ = "0.1.0"

__all__ = [
    "BuildConfig",
    "CachedVideo",
    "Session",
    "TokenCache",
    "TokenreelError",
    "open",
    "prefill",
]

_LAZY = {
    "CachedVideo": ("pipeline.cache", "CachedVideo"),
    "Session": ("pipeline.session", "Session"),
    "TokenCache": ("pipeline.cache", "TokenCache"),
    "open": ("pipeline.cache", "open_cache"),
    "prefill": ("pipeline.prefill", "build_prefill"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tokenreel' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__

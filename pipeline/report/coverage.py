"""What fusion lost of one cached video, measured on its tokens, which are encoded once more."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch

from pipeline.cache import CachedVideo, TokenCache
from pipeline.decode import FrameReader
from pipeline.dtypes import TORCH_DTYPES
from pipeline.encoders import VisualTokens, load_encoder
from pipeline.encoders.checkpoint import find_checkpoint
from pipeline.fusion.quality import Coverage, Quality, measure_rows
from pipeline.storage.remote import file_digest, local_copy
from schemas.config import DecodeConfig, EncoderConfig, PreprocessConfig
from schemas.errors import CacheMismatchError, CorpusError
from schemas.index import IndexRow


def measure_video(
    cache: TokenCache, video_id: str, *, model: str | None = None, device: str = "auto"
) -> Quality:
    """Encode a cached video again and compare its tokens with the rows that are stored.

    Args:
        cache: an open cache.
        video_id: as in the index.
        model: checkpoint; the one named by the cache's manifest by default.
        device: "auto" takes CUDA when there is any.

    Raises:
        ConfigError: nothing says which checkpoint made the cache.
        CacheMismatchError: the checkpoint is not the one that made the cache.
        CorpusError: the video is not there any more, or is another one now.
        DecodeError: the video cannot be decoded.
    """
    video = cache.load(video_id)
    tokens = _encode_again(cache, video, model, device)
    return measure_rows(
        tokens.embeddings,
        video.embeddings,
        tokens.grid,
        keep_index=_grid_index(video),
        match_index=video.match,
    )


def coverage_lines(quality: Quality) -> Iterator[str]:
    """A table: cosines of all tokens, and of those of each motion level, with what is kept."""
    if quality.step > 1:
        yield f"(measured on every {quality.step}-th token of {quality.num_tokens})"
    yield f"{'tokens':10} {'number':>7}   {'stands for it':^22}   {'nearest kept':^22}"
    yield f"{'':10} {'':7}   {_heads()}   {_heads()}"
    for name, coverage in (("all", quality.whole), *quality.levels.items()):
        yield f"{name:10} {coverage.num_tokens:7}   {_spread(coverage, 0)}   {_spread(coverage, 1)}"


def _heads() -> str:
    return f"{'mean':>6}  {'p1':>6}  {'min':>6}"


def _spread(coverage: Coverage, which: int) -> str:
    spread = (coverage.representative, coverage.nearest)[which]
    return "  ".join(f"{getattr(spread, field.name):6.3f}" for field in fields(spread))


def _encode_again(
    cache: TokenCache, video: CachedVideo, model: str | None, device: str
) -> VisualTokens:
    manifest, row = cache.manifest, video.row
    checkpoint = find_checkpoint(manifest, model, where=cache.storage.location)
    settings = manifest.preprocess
    encoder = load_encoder(
        EncoderConfig(
            model=str(checkpoint.directory),
            device=device,
            dtype=str(TORCH_DTYPES[manifest.encoder.dtype]).removeprefix("torch."),
        ),
        PreprocessConfig(settings.min_pixels, settings.max_pixels, settings.cap_pixels_per_frame),
        manifest.sampling,
    )
    if (encoder.identity, encoder.preprocess) != (manifest.encoder, settings):
        raise CacheMismatchError(
            f"{checkpoint.name} is not the checkpoint that made {cache.storage.location}: its "
            "encoder or its preprocessing differs. Give the one that did."
        )
    with local_copy(row.path) as path:
        _require_unchanged(row, path)
        decode = DecodeConfig(decoder=row.decoder or "auto")
        with FrameReader(decode, manifest.sampling) as reader:
            frames = reader.read(path, resize=encoder.resize).frames
    [tokens] = encoder.encode([torch.from_numpy(frames)])
    return tokens


def _require_unchanged(row: IndexRow, path: str) -> None:
    """Raise CorpusError unless the file at ``path`` is the one that was cached."""
    if not Path(path).is_file():
        raise CorpusError(
            f"video {row.video_id!r}: there is no file {row.path} any more. Put it back, or build "
            "a cache from where the videos are now."
        )
    if file_digest(path) != row.content_sha256:
        raise CorpusError(
            f"video {row.video_id!r}: {row.path} is no longer the file that was cached. Build the "
            "cache again to take up the new one."
        )


def _grid_index(video: CachedVideo) -> torch.Tensor:
    """``(N,)`` int64 places of the loaded tokens in the grid."""
    strides = torch.tensor([video.grid.tokens_per_frame, video.grid.width, 1])
    return (video.coordinates.long() * strides).sum(dim=1)

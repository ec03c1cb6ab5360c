"""Preprocessed features of STTM to a cache: every video once, nothing encoded."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from jobs.build import BuildSummary
from jobs.committer import Entry, entry_bytes
from jobs.events import Assembled, Committed, Event
from jobs.plan import BuildPlan, make_plan
from jobs.progress import Progress, Tally
from jobs.sttm_importer import RULE_VERSION, SttmImporter
from jobs.sttm_source import SttmSource
from pipeline.dtypes import STORAGE_DTYPES
from pipeline.fusion import check_settings
from pipeline.storage import Location, Storage, open_storage
from pipeline.store.commit import commit_videos
from pipeline.store.index import Index
from pipeline.store.manifest import create_or_check, find_manifest, require_room_for_cache
from pipeline.store.shard import shard_sizes
from pipeline.sttm import read_features
from schemas.config import StoreConfig
from schemas.errors import CorpusError, ModelError, TokenreelError
from schemas.fusion import FusionConfig
from schemas.manifest import (
    IMPORTED,
    DecoderIdentity,
    EncoderIdentity,
    Manifest,
    ResolvedPreprocess,
)
from schemas.video import VideoRef


def import_sttm(
    source: SttmSource,
    location: Location,
    fusion: FusionConfig,
    *,
    retry_failed: bool = False,
    limit: int | None = None,
    progress_style: str = "auto",
) -> BuildSummary:
    """Cache the features of every video that the cache does not hold yet.

    Raises:
        FusionError: the fusion method cannot do what is asked of it.
        CorpusError: there are no features, or none that can be read.
        ModelError: the features do not fit the model given for their ids.
        CacheMismatchError: the cache was built from something else.
        CacheError: the cache cannot be written.
    """
    check_settings(fusion)
    refs = source.find()
    storage = open_storage(location)
    existing = find_manifest(storage)
    if existing is None:
        require_room_for_cache(storage)
    if existing is None:
        dtype, width = _first_type(refs)
    else:
        dtype, width = existing.encoder.dtype, existing.encoder.hidden_size
    manifest = create_or_check(storage, _make_manifest(source, fusion, dtype, width))
    plan = make_plan(
        refs,
        Index.read(storage).table,
        fingerprint=manifest.fingerprint,
        shard_sizes=shard_sizes(storage),
        retry_failed=retry_failed,
        limit=limit,
    )
    tally = Tally(total=len(plan.todo))
    progress = Progress(tally, style=progress_style)
    try:
        for event in _run(SttmImporter(source, manifest), storage, plan):
            progress.note(event)
    finally:
        progress.close()
    return BuildSummary(plan, tally)


def _first_type(refs: Sequence[VideoRef]) -> tuple[str, int]:
    """Storage type and width of the first features that can be read; all must be alike."""
    first_error: TokenreelError | None = None
    for ref in refs:
        try:
            features = read_features(Path(ref.path))
        except TokenreelError as error:
            first_error = first_error or error
        else:
            return STORAGE_DTYPES[features.dtype], features.shape[3]
    raise CorpusError(
        f"none of {len(refs)} files of features can be read; the first: {first_error}"
    )


def _make_manifest(source: SttmSource, fusion: FusionConfig, dtype: str, width: int) -> Manifest:
    rule = source.rule
    if rule.width not in (None, width):
        raise ModelError(
            f"the features are {width} wide, the language model of --model takes {rule.width}: "
            "give the checkpoint that made them"
        )
    stands_for_weights = f"sttm import: {source.encoder_name}"
    prompt = [rule.pad, rule.newline]
    return Manifest(
        encoder=EncoderIdentity(
            model_type=rule.model_type,
            weights_digest=hashlib.sha256(stands_for_weights.encode()).hexdigest(),
            tokenizer_digest=hashlib.sha256(json.dumps(prompt).encode()).hexdigest(),
            dtype=dtype,
            hidden_size=width,
            num_deepstack=0,
            patches=rule.patches,
        ),
        sampling=source.sampling,
        preprocess=ResolvedPreprocess(0, 0, False, 0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        decode=DecoderIdentity(IMPORTED, {"rule": RULE_VERSION}),
        fusion=fusion,
        about={
            "imported_from": f"STTM features, {source.folder.absolute()}",
            "encoder_name": source.encoder_name,
            "weights_digest": f"sha256 of the text {stands_for_weights!r}; weights were not seen",
            "tokenizer_digest": f"sha256 of {json.dumps(prompt)}: pad, newline",
            "preprocess": "not known; zeros stand for that",
            "sampling": "fps and max_frames as STTM's own sampler takes them",
            "torch": torch.__version__,
        },
    )


def _run(importer: SttmImporter, storage: Storage, plan: BuildPlan) -> Iterator[Event]:
    """Import one video after the other; commit by bytes, by time and at the end."""
    settings = StoreConfig()
    batch: list[Entry] = []
    num_bytes, since = 0, time.monotonic()
    tasks = plan.tasks()
    for number, task in enumerate(tasks, 1):
        entry = importer.entry(task)
        batch.append(entry)
        num_bytes += entry_bytes(entry)
        yield Assembled((task.video_id,))
        waited = time.monotonic() - since
        is_full = num_bytes >= settings.shard_bytes or waited >= settings.commit_seconds
        if is_full or number == len(tasks):
            started = time.perf_counter()
            rows = commit_videos(storage, batch)
            yield Committed(tuple(rows), time.perf_counter() - started)
            batch, num_bytes, since = [], 0, time.monotonic()

"""One build from corpus to summary, on either runner."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from jobs.events import Committed, Event
from jobs.failures import FailureBudget
from jobs.plan import DONE_COLUMNS, BuildPlan, Task, make_plan
from jobs.progress import Progress, Tally, say_line
from pipeline.corpus import list_corpus
from pipeline.corpus_columns import further_columns, require_same_columns
from pipeline.fusion import check_settings
from pipeline.storage import Location, open_storage
from pipeline.store.bucket_index import read_columns
from pipeline.store.index import index_schema
from pipeline.store.manifest import create_or_check, find_manifest, require_room_for_cache
from pipeline.store.shard import shard_sizes
from schemas.config import BuildConfig, PreprocessConfig
from schemas.errors import FailureBudgetExceeded
from schemas.manifest import Manifest, StoreIdentity


class Runner(Protocol):
    """Where tasks run."""

    @property
    def manifest(self) -> Manifest:
        """What this runner builds."""
        ...

    @property
    def metrics_urls(self) -> Sequence[str]:
        """Where this build can be watched that nobody could know of otherwise."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Yield what happens to the videos until all are committed."""
        ...

    def close(self) -> None:
        """Give back processes and memory."""
        ...


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """How a build ended; ``stopped_by`` holds the message when the failure budget ended it."""

    plan: BuildPlan
    tally: Tally
    stopped_by: str | None = None

    @property
    def exit_code(self) -> int:
        """0 no video failed, 3 some did, 4 the failure budget ended the build."""
        if self.stopped_by:
            return 4
        return 3 if self.tally.failed or self.plan.num_failed_before else 0


def settle_config(config: BuildConfig) -> BuildConfig:
    """The same with the checkpoint's own settings written out; unchanged if no model is named.

    Raises:
        ModelError: there is no such checkpoint, or its processor cannot be honoured.
        ConfigError: the pixel budgets contradict each other.
    """
    if not config.encoder.model:
        return config
    from pipeline.model_folder import locate_checkpoint
    from pipeline.processor import resolve_settings
    from pipeline.processor_file import PROCESSOR_FILES

    directory = locate_checkpoint(
        config.encoder.model, config.encoder.revision, files=("config.json", *PROCESSOR_FILES)
    )
    own = resolve_settings(directory, sampling=config.sampling, preprocess=config.preprocess)
    names = [field.name for field in dataclasses.fields(PreprocessConfig)]
    used = PreprocessConfig(**{name: getattr(own.preprocess, name) for name in names})
    origins = {**own.origins, **config.origins}
    return dataclasses.replace(config, sampling=own.sampling, preprocess=used, origins=origins)


def plan_build(
    sources: Sequence[str],
    location: Location,
    config: BuildConfig,
    *,
    retry_failed: bool = False,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
) -> BuildPlan:
    """What ``build`` would do, from names, sizes, times and the index.

    A video is opened only when its path or modification time changed and its size did not; if
    that takes long, ``say`` (None: stderr) is told now and then.

    Raises:
        FusionError: the fusion method cannot do what is asked of it.
        CorpusError: the corpus cannot be listed, or its further columns do not go with the cache's.
        CacheError: the folder holds other files and no cache.
        ModelError: there is a cache, and the model that is named cannot be found or honoured.
        CacheMismatchError: the cache was built with other settings; the checkpoint's weights and
            versions are compared by ``build`` only.
    """
    check_settings(config.fusion)
    corpus = list_corpus(sources)
    videos = corpus.videos
    storage = open_storage(location)
    manifest = find_manifest(storage)
    if manifest is None:
        require_room_for_cache(storage)
        plan = make_plan(videos, None, retry_failed=retry_failed, limit=limit)
        return dataclasses.replace(plan, passed_over=corpus.passed_over)
    decode = dataclasses.replace(manifest.decode, decoder=config.decode.decoder)
    config = settle_config(config)
    overrides = dataclasses.asdict(config.preprocess)
    asked = dataclasses.replace(
        manifest,
        sampling=config.sampling.over(manifest.sampling),
        preprocess=dataclasses.replace(
            manifest.preprocess, **{name: v for name, v in overrides.items() if v is not None}
        ),
        fusion=config.fusion,
        decode=decode,
        store=StoreIdentity(config.store.encoding),
    )
    manifest.require_same(asked, where=storage.location)
    if columns := further_columns(videos):
        require_same_columns(columns, index_schema(storage), where=storage.location)
    plan = make_plan(
        videos,
        read_columns(storage, DONE_COLUMNS),
        fingerprint=manifest.fingerprint,
        shard_sizes=shard_sizes(storage),
        retry_failed=retry_failed,
        limit=limit,
        say=say,
    )
    return dataclasses.replace(plan, passed_over=corpus.passed_over)


def build(
    sources: Sequence[str],
    location: Location,
    config: BuildConfig,
    *,
    retry_failed: bool = False,
    limit: int | None = None,
    progress_style: str = "auto",
) -> BuildSummary:
    """Cache every video of a corpus that the cache does not hold yet.

    Raises:
        FusionError: the fusion method cannot do what is asked of it.
        CorpusError: the corpus cannot be listed.
        ModelError: the checkpoint cannot be loaded.
        CacheMismatchError: the cache was built with another configuration.
        CacheError: the cache cannot be written.
    """
    say = partial(say_line, style=progress_style)
    plan = plan_build(sources, location, config, retry_failed=retry_failed, limit=limit, say=say)
    model = config.encoder.model
    if Path(model).is_dir():
        config = config.override("encoder", model=str(Path(model).resolve()))
    runner = _make_runner(config, location, is_idle=not plan.todo)
    try:
        create_or_check(open_storage(location), runner.manifest)
        for url in runner.metrics_urls:
            say(f"metrics: {url}")
        tally = Tally(total=len(plan.todo))
        return _run(runner, plan, tally, config, progress_style)
    finally:
        runner.close()


def _make_runner(config: BuildConfig, location: Location, *, is_idle: bool) -> Runner:
    """The runner asked for; to compare the checkpoint with the cache's no Ray is started."""
    text = os.fspath(location)
    if config.run.runner == "ray" and not is_idle:
        from jobs.ray_runner import RayRunner

        return RayRunner(config, text if "://" in text else str(Path(text).resolve()))
    from jobs.local import LocalRunner

    return LocalRunner(config, text)


def _run(
    runner: Runner, plan: BuildPlan, tally: Tally, config: BuildConfig, progress_style: str
) -> BuildSummary:
    budget = FailureBudget(config.run.max_failures)
    progress = Progress(tally, style=progress_style)
    try:
        for event in runner.run(plan.tasks()):
            progress.note(event)
            if isinstance(event, Committed):
                for row in event.rows:
                    budget.count(row)
    except FailureBudgetExceeded as stop:
        return BuildSummary(plan, tally, stopped_by=str(stop))
    finally:
        progress.close()
    return BuildSummary(plan, tally)

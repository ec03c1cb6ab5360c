"""Numbers at the endpoint of a real Ray, against the index."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from jobs.build import build
from jobs.metrics import COUNTERS, GAUGES, HISTOGRAMS, Recorder, metrics_urls
from jobs.plan import make_plan
from jobs.ray_cluster import connect
from jobs.ray_runner import RayRunner
from pipeline.cache import open_cache
from pipeline.corpus import find_videos
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.fragment import fragment_names
from pipeline.store.manifest import create_or_check
from schemas.config import RunConfig
from schemas.config_file import parse_config
from tests.faults import MortalWorker
from tests.synthetic import REPOSITORY

pytestmark = pytest.mark.ray

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def shared_ray():
    """A Ray as ``build`` starts one; it outlives the builds, and so do their numbers."""
    connect(RunConfig(runner="ray"))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for seed in range(4):
        write_scene_clip(root / f"{seed}.mp4", seed=seed, seconds=2.0, width=128, height=96, fps=12)
    (root / "broken.mp4").write_bytes(bytes(range(256)) * 10)
    return root


@pytest.fixture
def config(tiny_checkpoint):
    sections = {
        "encoder": {"model": str(tiny_checkpoint), "device": "cpu"},
        "store": {"shard_bytes": 1},
        "run": {"runner": "ray"},
    }
    return parse_config(sections)


LABELS = ("status", "error_kind", "stage", "reason", "le")


def scrape(root):
    """All samples of one cache, summed over processes: {(name, *sorted label values): value}."""
    (url,) = metrics_urls()
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = Counter()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("ray_tokenreel_") and sample.labels["cache"] == str(root):
            labels = sorted(filter(None, map(sample.labels.get, LABELS)))
            found[sample.name.removeprefix("ray_tokenreel_"), *labels] += sample.value
    return dict(found)


def equal_to(expected):
    """Exact but for the order in which floating-point numbers were added."""
    return pytest.approx(expected, rel=1e-12, abs=0.0)


def wait_for(root, expected):
    """The samples named in ``expected``, once they are as expected or time is up."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        samples = scrape(root)
        found = {key: samples.get(key) for key in expected}
        if found == equal_to(expected) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def in_buckets(name, values, *labels):
    """What a histogram of these values shows, but for its sum, which Ray rounds."""
    _, _, boundaries = HISTOGRAMS[f"tokenreel_{name}"]
    counts = {"+Inf": len(values)}
    for boundary in boundaries:
        counts[str(float(boundary))] = sum(value <= boundary for value in values)
    buckets = {(f"{name}_bucket", *sorted([le, *labels])): n for le, n in counts.items()}
    return {**buckets, (f"{name}_count", *labels): len(values)}


def test_the_numbers_at_the_endpoint_are_the_sums_over_the_index(
    shared_ray, corpus, tmp_path, config
):
    root = tmp_path / "cache"
    summary = build([str(corpus)], root, config, progress_style="none")
    rows = open_cache(root).index.to_pylist()
    done = [row for row in rows if row["status"] == "ok"]
    assert (len(rows), len(done), summary.tally.done) == (5, 4, 4)

    def total(column, of=done):
        return sum(row[column] for row in of)

    stages = {
        name: [row[f"{name}_seconds"] for row in done] for name in ("decode", "encode", "fuse")
    }
    expected = {
        ("videos_total", "ok"): 4,
        ("videos_total", "failed", "unreadable"): 1,
        ("source_bytes_total",): total("size_bytes", rows),
        ("video_seconds_total",): total("duration_seconds"),
        ("written_bytes_total",): total("num_bytes"),
        ("tokens_before_total",): total("tokens_before"),
        ("tokens_after_total",): total("tokens_after"),
        ("stage_duration_seconds_count", "write"): len(fragment_names(open_storage(root))),
        **in_buckets("keep_ratio", [row["keep_ratio"] for row in done]),
    }
    for stage, seconds in stages.items():
        expected |= in_buckets("stage_duration_seconds", seconds, stage)
        expected["busy_seconds_total", stage] = sum(seconds)
    assert wait_for(root, expected) == equal_to(expected)


def test_the_driver_counts_deaths_of_workers_and_the_videos_that_cause_them(
    shared_ray, corpus, tmp_path, config
):
    write_scene_clip(tmp_path / "deadly.mp4", seed=5, seconds=2.0, width=128, height=96, fps=12)
    root = tmp_path / "cache"
    runner = RayRunner(config, root, worker_class=MortalWorker)
    create_or_check(open_storage(root), runner.manifest)
    videos = find_videos([str(corpus / "0.mp4"), str(tmp_path / "deadly.mp4")])
    expected = {
        ("worker_deaths_total", "ActorDiedError"): 2,
        ("videos_total", "quarantined", "worker_died"): 1,
        ("remaining_videos",): 0,
    }
    try:
        list(runner.run(make_plan(videos, None).tasks()))
        found = wait_for(root, expected)
    finally:
        runner.close()
    assert found == expected


def test_a_build_needs_no_metrics(corpus, tmp_path, config):
    command = [
        *(sys.executable, "-m", "jobs", "build", str(corpus), "--out", str(tmp_path / "cache")),
        *("--model", config.encoder.model, "--device", "cpu", "--runner", "ray"),
    ]
    environment = {**os.environ, "RAY_enable_metrics_collection": "0"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, len(open_cache(tmp_path / "cache"))) == (3, 4), result.stderr


def test_a_number_that_ray_refuses_is_logged_and_nothing_more(caplog):
    recorder = Recorder("cache")
    recorder.add("tokenreel_videos", 1, status="ok")
    recorder.set("tokenreel_no_such_gauge", 1)
    recorder.observe("tokenreel_keep_ratio", float("nan"))
    recorder.add("tokenreel_written_bytes", 0)
    assert [record.getMessage() for record in caplog.records] == [
        "a metric could not be counted"
    ] * 2


def test_every_metric_is_in_the_documentation_and_no_other():
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    written = re.findall(r"^\| `ray_(tokenreel_\w+)` \|", text, flags=re.MULTILINE)
    made = [*(f"{name}_total" for name in COUNTERS), *GAUGES, *HISTOGRAMS]
    assert sorted(written) == sorted(made)

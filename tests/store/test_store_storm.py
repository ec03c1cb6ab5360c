"""Writers, readers and compactions killed at random: no half video, none lost, nothing left."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.compact import compact_cache
from pipeline.store.verify import verify_cache
from tests.store.sample_cache import build, fragments_of
from tests.store.storm_child import NUM_KILLS, NUM_WRITERS, Storm, require_whole
from tests.synthetic import REPOSITORY


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of work, more on a busy machine
def test_a_storm_of_kills_loses_no_commit_and_shows_no_half_video(tmp_path):
    root = tmp_path / "cache"
    build(root)
    child = subprocess.run(
        [sys.executable, "-m", "tests.store.storm_child", str(tmp_path), "0"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    counts = json.loads(child.stdout)
    assert counts["write killed"] + counts["read killed"] >= NUM_KILLS
    assert min(counts["write killed"], counts["read killed"]) >= NUM_KILLS // 4
    assert counts["passes"] > 8
    findings = list(verify_cache(open_storage(root)))
    assert not any(finding.is_damage for finding in findings)
    assert findings, "kills in the midst of commits leave temporary files or orphans"

    compact_cache(open_storage(root), grace_seconds=0)
    assert list(verify_cache(open_storage(root))) == []
    storm, cache = Storm(tmp_path, 0), open_cache(root)
    known, found = storm.all_known(), set(cache.ids())
    assert known <= found
    assert len(found - known) <= 2 * (NUM_WRITERS + counts["write killed"]), "killed before a log"
    rows = sum(pq.read_metadata(path).num_rows for path in fragments_of(root))
    assert rows == len(found) == len(cache)
    for video_id in found:
        require_whole(cache.load(video_id))

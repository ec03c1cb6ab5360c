from click.testing import CliRunner

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.commit import commit_videos
from pipeline.store.fragment import fragment_file, fragment_names
from pipeline.store.manifest import create_or_check
from tests.store.sample_cache import MANIFEST, make_sample


def test_damaged_videos_go_out_of_service_and_unreadable_fragments_are_named(bucket):
    place = f"{bucket.url}/cache"
    storage = open_storage(place)
    create_or_check(storage, MANIFEST)
    entries = [make_sample(seed=n).pending(f"{n}", key=f"{n}" * 64) for n in range(3)]
    rows = commit_videos(storage, entries[:2])
    shard = f"shards/{rows[0].shard}.safetensors"
    with storage.open_range(shard) as source:
        data = bytearray(rows[1].offset + rows[1].num_bytes)
        source.fill([memoryview(data)], 0)
    data[rows[1].offset] ^= 1
    storage.replace(shard, [bytes(data)])
    done = CliRunner().invoke(cli, ["verify", place, "--discard"])
    assert done.exit_code == 0
    assert [open_cache(place).row(name).status for name in ("0", "1")] == ["ok", "damaged"]

    known = set(fragment_names(storage))
    commit_videos(storage, entries[2:])
    (name,) = set(fragment_names(storage)) - known
    storage.replace(fragment_file(name), [b"no parquet"])
    left = CliRunner().invoke(cli, ["verify", place, "--discard"])
    assert left.exit_code == 3
    assert f"remove by hand: {place}/{fragment_file(name)}" in left.stderr.splitlines()
    storage.remove(fragment_file(name))
    assert list(open_cache(place).ids()) == ["0"]

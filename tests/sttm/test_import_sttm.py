import json
import os
import shutil

import pytest
import torch

import jobs.import_verbs
import pipeline.sttm_prompt
from jobs.ask import ask_cache
from jobs.import_sttm import import_sttm
from jobs.sttm_source import SttmSource, resolve_sampling
from pipeline.cache import open_cache
from pipeline.sttm_prompt import prompt_rule
from schemas.errors import BudgetError, ConfigError, CorpusError, ModelError
from schemas.fusion import FusionConfig
from tests.sttm.extraction import (
    GRIDS,
    WIDTH,
    failures,
    found_by_verify,
    qwen2_metadata,
    run,
    run_llava,
    some_features,
    write_llava,
    write_video,
)


def test_every_token_comes_back_as_it_was_saved(folder, tmp_path):
    result = run(folder, tmp_path / "cache")
    assert result.exit_code == 0, result.output
    cache = open_cache(tmp_path / "cache")
    assert list(cache.ids()) == sorted(GRIDS)
    for video_id, shape in GRIDS.items():
        saved = torch.load(folder / "features" / f"{video_id}.pt", weights_only=True)
        video = cache.load(video_id)
        assert (video.grid.frames, video.grid.height, video.grid.width) == shape
        assert torch.equal(video.features, saved.reshape(-1, WIDTH))
    assert found_by_verify(tmp_path / "cache") == []


def test_a_folder_that_holds_other_files_takes_no_import(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run(folder, tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "is no cache and not empty" in result.stderr
    assert not (tmp_path / "manifest.json").exists()


def test_with_ttf_a_budget_is_a_prefix_and_survivors_are_saved_rows(folder, tmp_path):
    assert run(folder, tmp_path / "cache", fusion="ttf").exit_code == 0
    cache = open_cache(tmp_path / "cache")
    saved = torch.load(folder / "features" / "a.pt", weights_only=True)
    whole, part = cache.load("a"), cache.load("a", budget=7)
    assert whole.num_tokens < saved[..., 0].numel()
    assert part.num_tokens == 7
    assert part.bytes_read < whole.bytes_read
    for video in (whole, part):
        t, y, x = video.coordinates.long().unbind(1)
        assert torch.equal(video.features, saved[t, y, x])
    assert found_by_verify(tmp_path / "cache") == []


def test_without_fusion_a_budget_is_refused(folder, tmp_path):
    run(folder, tmp_path / "cache")
    with pytest.raises(BudgetError, match="build with one of: ttf, ttf-shots, evs, dycoke, random"):
        open_cache(tmp_path / "cache").load("a", budget=7)


def test_the_row_tells_the_source_and_what_the_metadata_know(folder, tmp_path):
    run(folder, tmp_path / "cache")
    row = open_cache(tmp_path / "cache").row("long/c")
    assert row.path == str(folder / "features" / "long" / "c.pt")
    assert row.num_frames == 18
    assert row.duration_seconds == pytest.approx(18 / 1.9)
    assert (row.fps, row.width, row.codec) == (None, None, None)
    assert (row.decoder, row.attempts, row.num_deepstack) == ("sttm import", 1, 0)


def test_the_manifest_says_what_is_known_and_that_weights_were_not_seen(folder, tmp_path):
    run(folder, tmp_path / "cache")
    manifest = open_cache(tmp_path / "cache").manifest
    encoder = manifest.encoder
    assert (encoder.model_type, encoder.dtype, encoder.hidden_size) == ("qwen2_vl", "BF16", WIDTH)
    assert (manifest.sampling.fps, manifest.sampling.max_frames) == (2.0, 256)
    assert "weights were not seen" in manifest.about["weights_digest"]
    assert "model" not in manifest.about


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_storage_types_stay_what_they_are(tmp_path, dtype):
    folder = tmp_path / "F-8_fps-1"
    features = some_features((2, 3, 3), dtype=dtype)
    write_video(folder, "v", features, qwen2_metadata("v", (2, 3, 3)))
    assert run(folder, tmp_path / "cache").exit_code == 0
    assert torch.equal(open_cache(tmp_path / "cache").load("v").features, features.view(-1, WIDTH))


def test_projected_llava_tokens_are_imported(tmp_path):
    folder = tmp_path / "F-128_fps-1"
    write_llava(folder, some_features((3, 2, 2)), num_frames=3)
    assert run_llava(folder, tmp_path / "cache").exit_code == 0
    video = open_cache(tmp_path / "cache").load("v")
    assert video.position_ids[0].tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16]
    assert video.next_position == 18
    assert (video.row.duration_seconds, video.row.num_frames) == (4.5, 3)


def test_another_place_of_the_newline_is_another_cache(tmp_path):
    folder = tmp_path / "F-128_fps-1"
    write_llava(folder, some_features((3, 2, 2)), num_frames=3)
    run_llava(folder, tmp_path / "cache")
    result = run_llava(folder, tmp_path / "cache", newline="no_token")
    assert result.exit_code == 1
    assert "another configuration" in result.stderr


def test_an_import_resumes_and_skips_what_is_there(folder, tmp_path):
    first = run(folder, tmp_path / "cache", "--limit", "1")
    assert "done 1/1" in first.stderr
    second = run(folder, tmp_path / "cache")
    assert "done 2/2" in second.stderr
    assert "1 were done before" in second.stderr
    before = sorted((tmp_path / "cache").rglob("*.safetensors"))
    third = run(folder, tmp_path / "cache")
    assert "3 were done before" in third.stderr
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == before


def test_features_that_changed_are_imported_again(folder, tmp_path):
    run(folder, tmp_path / "cache")
    changed = some_features(GRIDS["a"], seed=9)
    torch.save(changed, folder / "features" / "a.pt")
    os.utime(folder / "features" / "a.pt", ns=(1, 1))
    assert "done 1/1" in run(folder, tmp_path / "cache").stderr
    assert torch.equal(
        open_cache(tmp_path / "cache").load("a").features, changed.reshape(-1, WIDTH)
    )


def test_a_resumed_import_holds_to_the_type_of_the_cache(folder, tmp_path):
    run(folder, tmp_path / "cache")
    shutil.rmtree(folder / "features")
    write_video(folder, "new", torch.ones(2, 2, 2, 8), qwen2_metadata("new", (2, 2, 2)))
    assert run(folder, tmp_path / "cache").exit_code == 3
    assert "another encoder" in failures(tmp_path / "cache")["new"]["error_message"]


def test_other_settings_are_another_cache(folder, tmp_path):
    run(folder, tmp_path / "cache")
    result = run(folder, tmp_path / "cache", fusion="ttf")
    assert result.exit_code == 1
    assert "fusion.method" in result.stderr


def test_two_imports_of_the_same_files_write_the_same_shard(folder, tmp_path):
    for name in ("one", "two"):
        run(folder, tmp_path / name, fusion="ttf")
    shards = [
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.safetensors"))]
        for name in ("one", "two")
    ]
    assert shards[0] == shards[1]
    assert shards[0]


def test_the_summary_is_json_when_asked_for(folder, tmp_path):
    result = run(folder, tmp_path / "cache", "--json")
    summary = json.loads(result.stdout)
    assert (summary["done"], summary["failed"], summary["exit_code"]) == (3, 0, 0)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert {event["video_id"] for event in events} == set(GRIDS)


def test_no_other_model_is_asked_about_imported_tokens(folder, tmp_path, tiny_checkpoint):
    run(folder, tmp_path / "cache")
    with pytest.raises(ConfigError, match="does not say which model"):
        list(ask_cache(str(tmp_path / "cache"), "a", ["What moves?"]))
    with pytest.raises(ModelError):
        list(ask_cache(str(tmp_path / "cache"), "a", ["What moves?"], model=str(tiny_checkpoint)))


def test_a_folder_without_features_is_refused(tmp_path):
    source = SttmSource(tmp_path, "Q", prompt_rule("qwen2_vl"), resolve_sampling(tmp_path, 2.0, 8))
    with pytest.raises(CorpusError, match="no folder features"):
        import_sttm(source, tmp_path / "cache", FusionConfig("none"))
    (tmp_path / "features").mkdir()
    with pytest.raises(CorpusError, match=r"holds no \.pt files"):
        import_sttm(source, tmp_path / "cache", FusionConfig("none"))
    assert not (tmp_path / "cache").exists()


def test_sampling_that_nobody_told_is_asked_for(folder, tmp_path):
    shutil.move(folder, tmp_path / "renamed")
    with pytest.raises(ConfigError, match="--fps and --max-frames"):
        resolve_sampling(tmp_path / "renamed", None, 64)
    sampling = resolve_sampling(tmp_path / "renamed", 0.5, 64)
    assert (sampling.fps, sampling.max_frames, sampling.min_frames) == (0.5, 64, 1)


def test_the_verb_offers_what_the_library_knows():
    assert jobs.import_verbs.MODEL_TYPES == pipeline.sttm_prompt.MODEL_TYPES
    assert jobs.import_verbs.NEWLINES == pipeline.sttm_prompt.NEWLINES

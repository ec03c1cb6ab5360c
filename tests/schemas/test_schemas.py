import dataclasses
import json

import numpy as np
import pytest

from schemas.config import (
    BuildConfig,
    EncoderConfig,
    RunConfig,
    SamplingConfig,
)
from schemas.config_file import format_config, parse_config, read_config
from schemas.errors import (
    CacheMismatchError,
    ConfigError,
    FormatVersionError,
    GridMismatchError,
    IndexCorruptError,
)
from schemas.fusion import FusionConfig, budget_tokens
from schemas.grid import PatchGeometry, TokenGrid
from schemas.manifest import DecoderIdentity, EncoderIdentity, Manifest, ResolvedPreprocess


def manifest(**changes):
    made = Manifest(
        encoder=EncoderIdentity(
            "qwen3_vl", "a" * 64, "b" * 64, "BF16", 2048, 3, PatchGeometry(16, 2, 2)
        ),
        sampling=SamplingConfig(),
        preprocess=ResolvedPreprocess(4096, 25165824, False, 768, (0.5,) * 3, (0.5,) * 3),
        decode=DecoderIdentity("auto", {"av": "18.1.0"}),
        fusion=FusionConfig(),
        about={"model": "somewhere"},
    )
    return dataclasses.replace(made, **changes)


def test_the_printed_configuration_reads_back_as_the_same(tmp_path):
    config = BuildConfig(
        encoder=EncoderConfig(model='a "quoted" \\ path 🎬'), fusion=FusionConfig(budget=0.25)
    )
    path = tmp_path / "build.toml"
    path.write_text(format_config(config), encoding="utf-8")
    assert read_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fusion]\nthreshhold = 0.5", "did you mean 'threshold'"),
        ("[fussion]\nthreshold = 0.5", "did you mean 'fusion'"),
        ("fusion = 3", "must be a section"),
        ("[fusion]\nthreshold = 'high'", "wrong type: expected float"),
        ("[fusion]\nwindow = true", "wrong type: expected int"),
        ("[fusion]\nwindow = 2", "expected 1, 3, 5 or 7"),
        ("[fusion]\nbudget = 1.5", "fraction in"),
        ("[sampling]\nnum_frames = 1", "2 (one token frame) to 65536"),
        ("[sampling]\nmax_frames = 99999999", "2 (one token frame) to 65536"),
        ("[decode]\ndeadline_seconds = inf", "(0, 1e7]"),
        ("[fusion]\nseed = -1", "[0, 2**63)"),
        ("[sampling]\nfps = 0.0", "(0, 1000]"),
        ("[sampling]\nfps = nan", "(0, 1000]"),
        ("[run]\nworkers = 2", "runner 'ray'"),
        ("[decode]\ndecoder = 'opencv'", "one of"),
        ("[fusion", "not valid TOML"),
    ],
    ids=str,
)
def test_a_bad_file_is_refused_with_its_name_and_what_was_expected(tmp_path, text, message):
    path = tmp_path / "build.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert message in str(caught.value)


def test_whole_numbers_serve_where_floats_are_expected():
    config = parse_config({"sampling": {"fps": 1}, "fusion": {"threshold": 1}})
    assert (config.sampling.fps, config.fusion.threshold) == (1.0, 1.0)


def test_override_replaces_only_what_is_given():
    config = BuildConfig().override("fusion", threshold=0.5, window=None)
    assert (config.fusion.threshold, config.fusion.window) == (0.5, 3)


@pytest.mark.parametrize(
    ("budget", "granted"), [(0.25, 25), (1.0, 100), (0.001, 1), (7, 7), (1000, 100)]
)
def test_a_budget_is_a_count_or_a_fraction_and_at_least_one_token(budget, granted):
    assert budget_tokens(budget, 100) == granted


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, True, "0.5", None])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ConfigError):
        budget_tokens(budget, 100)


def test_numbers_of_numpy_are_those_of_python():
    given = FusionConfig(
        budget=np.int64(7), threshold=np.float32(0.5), window=np.int32(5), seed=np.uint8(3)
    )
    plain = FusionConfig(budget=7, threshold=0.5, window=5, seed=3)
    assert manifest(fusion=given).fingerprint == manifest(fusion=plain).fingerprint
    assert FusionConfig(budget=np.float64(0.25)).budget == 0.25
    assert budget_tokens(np.float32(0.25), 100) == 25


@pytest.mark.parametrize("value", ["0.5", True, np.bool_(True), float("nan"), [0.5], b"1"], ids=str)
@pytest.mark.parametrize("name", ["threshold", "spatial_threshold", "budget", "window", "seed"])
def test_what_is_no_number_is_refused_as_a_setting_of_fusion(name, value):
    with pytest.raises(
        ConfigError, match=rf"^fusion\.{name} = .* is not possible: expected [^\n]+$"
    ):
        FusionConfig(method="sttm", **{name: value})


def test_failure_budgets_are_counts_or_fractions():
    assert RunConfig(max_failures=0).max_failures == 0
    assert RunConfig(max_failures=0.5).max_failures == 0.5
    with pytest.raises(ConfigError):
        RunConfig(max_failures=1.5)


def test_a_manifest_reads_back_and_its_fingerprint_ignores_what_is_only_told():
    one, other = manifest(), manifest(about={"model": "elsewhere"})
    assert Manifest.from_json(one.to_json(), source="x") == one
    assert one.fingerprint == other.fingerprint
    one.require_same(other, where="cache")


def test_every_compared_field_is_named_when_it_differs():
    other = manifest(
        fusion=FusionConfig(window=5), decode=DecoderIdentity("auto", {"av": "19.0.0"})
    )
    assert other.fingerprint != manifest().fingerprint
    with pytest.raises(CacheMismatchError) as caught:
        manifest().require_same(other, where="cache/")
    assert "decode.versions.av: cache has '18.1.0', this build '19.0.0'" in str(caught.value)
    assert "fusion.window: cache has 3, this build 5" in str(caught.value)


def test_a_usual_factor_is_told_where_another_one_differs():
    usual = manifest()
    other = manifest(preprocess=dataclasses.replace(usual.preprocess, rescale_factor=0.5))
    with pytest.raises(CacheMismatchError) as caught:
        usual.require_same(other, where="cache/")
    assert f"preprocess.rescale_factor: cache has {1 / 255}, this build 0.5" in str(caught.value)
    with pytest.raises(CacheMismatchError) as caught:
        other.require_same(usual, where="cache/")
    assert f"preprocess.rescale_factor: cache has 0.5, this build {1 / 255}" in str(caught.value)


def test_one_token_and_all_tokens_are_different_budgets():
    one, every = FusionConfig(budget=1), FusionConfig(budget=1.0)
    assert manifest(fusion=one).fingerprint != manifest(fusion=every).fingerprint
    with pytest.raises(CacheMismatchError, match=r"fusion\.budget: cache has 1, this build 1\.0"):
        manifest(fusion=one).require_same(manifest(fusion=every), where="cache")


def test_a_manifest_of_another_version_edited_or_broken_is_refused():
    body = json.loads(manifest().to_json())
    with pytest.raises(FormatVersionError, match="format version 2"):
        Manifest.from_json(json.dumps({**body, "format_version": 2}), source="m")
    edited = {**body, "fusion": {**body["fusion"], "threshold": 0.1}}
    with pytest.raises(IndexCorruptError, match="was changed after it was written"):
        Manifest.from_json(json.dumps(edited), source="m")
    for text in ("", "[]", "{}", "null", '{"format_version": 1}'):
        with pytest.raises(IndexCorruptError):
            Manifest.from_json(text, source="m")


def test_a_grid_counts_and_checks_its_tokens():
    grid = TokenGrid(2, 3, 4)
    assert (grid.num_tokens, grid.tokens_per_frame, str(grid)) == (24, 12, "2x3x4")
    with pytest.raises(GridMismatchError, match="found 96 visual tokens"):
        grid.check(96)
    with pytest.raises(GridMismatchError):
        TokenGrid(0, 1, 1)


def test_an_odd_last_frame_fills_a_token_frame():
    assert PatchGeometry(16, 2, 2).token_grid(7, 96, 128) == TokenGrid(4, 3, 4)

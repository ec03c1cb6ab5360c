"""What a checkpoint's processor file says is the default of a build, from the shell."""

import json
import shutil

import pytest
from click.testing import CliRunner

from jobs.build import settle_config
from jobs.cli import cli
from jobs.worker import Worker
from pipeline.cache import open_cache
from pipeline.decode import FrameReader
from pipeline.decode.clips import write_counter_clip
from pipeline.storage import open_storage
from pipeline.store.manifest import create_or_check
from schemas.config import DecodeConfig, SamplingConfig
from schemas.config_file import parse_config
from schemas.errors import CacheMismatchError

FILE = "video_preprocessor_config.json"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One video of 12.5 seconds."""
    root = tmp_path_factory.mktemp("corpus")
    write_counter_clip(root / "a.mp4", num_frames=125, width=128, height=96, fps=10)
    return root


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint):
    """A function: settings -> a tiny checkpoint whose processor file has them."""

    def make(**settings):
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "model", dirs_exist_ok=True)
        own = json.loads((tiny_checkpoint / FILE).read_text())
        (folder / FILE).write_text(json.dumps({**own, **settings}))
        return folder

    return make


def run(verb, corpus, root, model, *flags):
    arguments = [verb, corpus, "--out", root, "--model", model, "--device", "cpu", *flags]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def built(corpus, root, model, *flags):
    result = run("build", corpus, root, model, *flags)
    assert result.exit_code == 0, result.output
    return open_cache(root)


def about(cache, *names):
    return [cache.manifest.about.get(name) for name in names]


def test_a_build_samples_the_frames_that_the_checkpoints_processor_takes(
    corpus, tmp_path, checkpoint
):
    cache = built(corpus, tmp_path / "cache", checkpoint(fps=1, max_frames=6))
    assert cache.row("a.mp4").num_frames == 6
    assert cache.manifest.sampling == SamplingConfig(1.0, None, 4, 6)
    with FrameReader(DecodeConfig(), cache.manifest.sampling) as reader:
        indices = reader.read(corpus / "a.mp4").frame_indices
    assert indices.tolist() == [0, 25, 50, 74, 99, 124]


@pytest.mark.parametrize(
    ("own", "flags", "num_frames"),
    [
        ({"num_frames": 7}, [], 7),
        ({"fps": 0.1, "min_frames": 9}, [], 9),
        ({"fps": 1, "max_frames": 6}, ["--fps", "0.4"], 5),
        ({"fps": 1, "max_frames": 6}, ["--max-frames", "8"], 8),
        ({"fps": 1, "max_frames": 6}, ["--num-frames", "5"], 5),
        ({"num_frames": 7}, ["--fps", "0.4"], 5),
        ({"do_sample_frames": False}, ["--fps", "0.4"], 5),
    ],
    ids=str,
)
def test_flags_override_the_checkpoint(corpus, tmp_path, checkpoint, own, flags, num_frames):
    cache = built(corpus, tmp_path / "cache", checkpoint(**own), *flags)
    assert cache.row("a.mp4").num_frames == num_frames


def test_the_manifest_says_where_each_setting_comes_from(corpus, tmp_path, checkpoint):
    (tmp_path / "build.toml").write_text("[sampling]\nmin_frames = 3\nfps = 9\n")
    model = checkpoint(max_frames=6)
    flags = ["--config", tmp_path / "build.toml", "--fps", "1"]
    cache = built(corpus, tmp_path / "cache", model, *flags)
    sampling = about(cache, "sampling.fps", "sampling.min_frames", "sampling.max_frames")
    assert sampling == ["flag", "toml", "checkpoint"]
    names = ("preprocess.max_pixels", "preprocess.cap_pixels_per_frame")
    assert about(cache, *names) == ["checkpoint", "default"]


def test_where_settings_come_from_does_not_tell_caches_apart(corpus, tmp_path, checkpoint):
    one = built(corpus, tmp_path / "one", checkpoint(fps=1))
    two = built(corpus, tmp_path / "two", checkpoint(), "--fps", "1")
    assert about(one, "sampling.fps") + about(two, "sampling.fps") == ["checkpoint", "flag"]
    assert one.manifest.fingerprint == two.manifest.fingerprint


def test_another_factor_makes_another_cache(corpus, tmp_path, checkpoint):
    flags = ["--fps", "0.4", "--fusion", "none"]
    usual = built(corpus, tmp_path / "usual", checkpoint(rescale_factor=1 / 255), *flags)
    other = built(corpus, tmp_path / "other", checkpoint(rescale_factor=1 / 127.5), *flags)
    assert "rescale_factor" not in usual.manifest.identity()["preprocess"]
    assert other.manifest.identity()["preprocess"]["rescale_factor"] == 1 / 127.5
    assert usual.load("a.mp4").features.ne(other.load("a.mp4").features).any()


def test_a_plan_shows_the_settings_that_the_build_takes_and_their_origins(
    corpus, tmp_path, checkpoint
):
    model = checkpoint(fps=1, max_frames=6)
    flags = ["--max-frames", "5"]
    planned = json.loads(run("plan", corpus, tmp_path / "c", model, *flags, "--json").stdout)
    manifest = built(corpus, tmp_path / "c", model, *flags).manifest
    config = planned["config"]
    assert SamplingConfig(**config["sampling"]) == manifest.sampling
    assert config["preprocess"]["max_pixels"] == manifest.preprocess.max_pixels
    origins = {n: v for n, v in manifest.about.items() if n.startswith(("sampling.", "preproc"))}
    assert origins.items() <= config["origins"].items()
    lines = run("plan", corpus, tmp_path / "c", model, *flags).stdout.splitlines()
    assert "fps = 1.0  # checkpoint" in lines
    assert "max_frames = 5  # flag" in lines
    assert "min_frames = 4  # default" in lines


def test_a_printed_plan_is_a_configuration_of_the_same_build(corpus, tmp_path, checkpoint):
    model = checkpoint(num_frames=7)
    text = run("plan", corpus, tmp_path / "c", model).stdout
    (tmp_path / "build.toml").write_text(text[text.index("[sampling]") :])
    one = built(corpus, tmp_path / "one", model).manifest
    two = built(corpus, tmp_path / "two", model, "--config", tmp_path / "build.toml").manifest
    assert one.fingerprint == two.fingerprint


def test_a_plan_without_a_model_leaves_its_settings_open(corpus, tmp_path):
    arguments = ["plan", str(corpus), "--out", str(tmp_path / "cache"), "--fps", "3"]
    lines = CliRunner().invoke(cli, arguments).stdout.splitlines()
    assert "fps = 3.0  # flag" in lines
    assert "# max_frames = (not set)" in lines


def test_plan_and_build_compare_a_cache_with_what_the_checkpoint_says(corpus, tmp_path, checkpoint):
    root = tmp_path / "cache"
    built(corpus, root, checkpoint(fps=1))
    again = run("plan", corpus, root, checkpoint(fps=1), "--json")
    assert json.loads(again.stdout)["done"] == 1
    model = checkpoint(fps=3, cap_pixels_per_frame=True)
    for verb in ("plan", "build"):
        refused = run(verb, corpus, root, model)
        assert refused.exit_code == 1
        assert "sampling.fps: cache has 1.0, this build 3.0" in refused.stderr
        assert "preprocess.cap_pixels_per_frame: cache has False" in refused.stderr
    flags = ["--fps", "1", "--config", tmp_path / "build.toml"]
    (tmp_path / "build.toml").write_text("[preprocess]\ncap_pixels_per_frame = false\n")
    assert json.loads(run("plan", corpus, root, model, *flags, "--json").stdout)["done"] == 1


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_what_cannot_be_honoured_is_one_line_that_names_it(corpus, tmp_path, checkpoint, verb):
    model = checkpoint(do_sample_frames=False)
    result = run(verb, corpus, tmp_path / "cache", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: {model / FILE}: do_sample_frames = False is not possible: expected true, as every "
        "frame is too many for a cache; change it in that file, or say --fps or --num-frames\n"
    )
    assert not (tmp_path / "cache").exists()


def test_a_rate_and_a_number_of_frames_at_once_are_a_usage_error(corpus, tmp_path, checkpoint):
    flags = ["--fps", "1", "--num-frames", "4"]
    result = run("build", corpus, tmp_path / "cache", checkpoint(), *flags)
    assert result.exit_code == 2
    assert "--fps and --num-frames exclude each other" in result.stderr


def test_a_flag_for_the_rate_sets_aside_the_files_number_of_frames(corpus, tmp_path, checkpoint):
    (tmp_path / "build.toml").write_text("[sampling]\nnum_frames = 7\n")
    flags = ["--config", tmp_path / "build.toml", "--fps", "0.4"]
    cache = built(corpus, tmp_path / "cache", checkpoint(), *flags)
    assert cache.row("a.mp4").num_frames == 5
    assert about(cache, "sampling.fps", "sampling.num_frames") == ["flag", None]


def test_a_loss_is_measured_with_the_settings_of_the_cache(corpus, tmp_path, checkpoint):
    built(corpus, tmp_path / "cache", checkpoint(do_sample_frames=False), "--fps", "0.4")
    shown = ["show", str(tmp_path / "cache"), "a.mp4", "--coverage"]
    result = CliRunner().invoke(cli, shown)
    assert result.exit_code == 0, result.output
    assert "nearest kept" in result.output


def test_a_settled_configuration_builds_the_same_on_every_worker(corpus, tmp_path, checkpoint):
    sections = {"encoder": {"model": str(checkpoint(fps=1)), "device": "cpu"}}
    config = parse_config(sections)
    settled = settle_config(config)
    assert settle_config(settled) == settled
    worker = Worker(config, tmp_path / "cache")
    create_or_check(open_storage(tmp_path / "cache"), worker.manifest)
    fingerprint = worker.manifest.fingerprint
    worker.close()
    Worker(settled, tmp_path / "cache", fingerprint=fingerprint).close()
    checkpoint(fps=3)
    with pytest.raises(CacheMismatchError, match="another checkpoint"):
        Worker(config, tmp_path / "cache", fingerprint=fingerprint)

"""The toy world: what is asked about a scene is what its pixels show."""

import json
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from examples.toyworld.draw import draw_scene
from examples.toyworld.make_videos import main as make_videos
from examples.toyworld.make_videos import write_video
from examples.toyworld.masks import mover_pixels, shape_mask
from examples.toyworld.questions import KINDS, ask
from examples.toyworld.render import render
from examples.toyworld.scene import COLOURS, FIRST_SEEDS, LEVELS, NUM_FRAMES, SIDE
from pipeline.decode import FrameReader
from schemas.config import DecodeConfig, SamplingConfig
from tests.synthetic import REPOSITORY

SCENES = [draw_scene(seed) for seed in range(200)]


def answers(scene, kind):
    return {question.text: question.answer for question in ask(scene) if question.kind == kind}


def patch(scene, frames, mover, t):
    """The pixels of a mover, gains taken off; None where something may lie over it."""
    x, y = np.round(mover.centres[t]).astype(int) + scene.camera.near[t] - mover.radius
    mask = shape_mask(mover.shape, mover.radius)
    if min(x, y) < 0 or max(x, y) + len(mask) > SIDE:
        return None
    return frames[t, y : y + len(mask), x : x + len(mask)][mask] / scene.gains[t]


def test_the_same_seed_gives_the_same_frames_and_questions_and_another_seed_others():
    one, again, other = draw_scene(3), draw_scene(3), draw_scene(4)
    assert np.array_equal(render(one), render(again))
    assert ask(one) == ask(again)
    assert not np.array_equal(render(one), render(other))


def test_levels_are_drawn_alike_often_and_mean_what_they_say():
    counts = Counter(scene.level for scene in SCENES)
    assert counts == dict.fromkeys(LEVELS, len(SCENES) // len(LEVELS))
    for scene in SCENES:
        assert bool(scene.cuts) == (scene.level == "cuts")
        assert (scene.camera.far != 0).any() == (scene.level == "high")
        if scene.level == "still":
            assert {mover.direction for mover in scene.movers} == {"still"}


def test_no_two_movers_share_a_shape_or_a_colour_they_ever_have():
    for scene in SCENES:
        colours = [mover.colour for mover in scene.movers]
        colours += [mover.then for mover in scene.movers if mover.then]
        assert len(set(colours)) == len(colours)
        assert len({mover.shape for mover in scene.movers}) == len(scene.movers)


def test_cuts_do_not_keep_to_token_frames():
    assert {cut % 2 for scene in SCENES for cut in scene.cuts} == {0, 1}


def test_colours_of_shapes_are_those_of_their_pixels():
    checked = 0
    for scene in SCENES[:60]:
        frames = render(scene)
        for mover in scene.movers:
            if mover.then is not None:
                continue
            asked = f"which colour has the {mover.shape} ?"
            expected = COLOURS[answers(scene, "colour")[asked]]
            patches = [patch(scene, frames, mover, t) for t in range(mover.start, mover.stop)]
            errors = [np.median(np.abs(p - expected)) for p in patches if p is not None]
            if errors:
                checked += 1
                assert min(errors) < 15
    assert checked > 60


def test_a_change_is_seen_in_the_pixels_of_the_shape_that_is_named():
    checked = 0
    for scene in SCENES[:80]:
        [answer] = answers(scene, "change").values()
        changed = [mover for mover in scene.movers if mover.then is not None]
        assert answer == (changed[0].shape if changed else "none")
        for mover in changed:
            frames = render(scene)
            before = patch(scene, frames, mover, mover.start)
            after = patch(scene, frames, mover, mover.stop - 1)
            if before is not None and after is not None and len(scene.movers) == 1:
                assert np.abs(np.median(before, axis=0) - COLOURS[mover.colour]).max() < 30
                assert np.abs(np.median(after, axis=0) - COLOURS[mover.then]).max() < 30
                checked += 1
    assert checked >= 5


def shown(scene, t):
    """Number of the mover that is seen at each pixel of a frame, painted pixel by pixel."""
    picture = np.full((SIDE, SIDE), -1)
    for number, mover in enumerate(scene.movers):
        if mover.start <= t < mover.stop:
            mask = shape_mask(mover.shape, mover.radius)
            x, y = np.round(mover.centres[t]).astype(int) + scene.camera.near[t] - mover.radius
            for row, column in np.argwhere(mask):
                if 0 <= y + row < SIDE and 0 <= x + column < SIDE:
                    picture[y + row, x + column] = number
    for flash in scene.flashes:
        if flash.start <= t < flash.stop:
            picture[flash.corner[1] :, flash.corner[0] :][:18, :14] = -1
    return picture


def test_what_is_in_sight_is_what_nothing_is_painted_over():
    for scene in SCENES[:12]:
        for t in range(0, NUM_FRAMES, 5):
            picture = shown(scene, t)
            for number, mover in enumerate(scene.movers):
                share = (picture == number).sum() / shape_mask(mover.shape, mover.radius).sum()
                assert scene.sight[number, t] == pytest.approx(share)


def test_every_thing_is_seen_for_a_while_and_where_it_is_last_if_that_is_asked():
    for scene in SCENES:
        assert ((scene.sight >= 0.5).sum(axis=1) >= 4).all()
        for mover, sight in zip(scene.movers, scene.sight, strict=True):
            asked = {f"where is the {name} thing last ?" for name in (mover.shape, mover.colour)}
            if asked & answers(scene, "end").keys():
                assert sight[mover.stop - 1] >= 0.5


def test_things_touch_where_they_cover_the_same_pixels_and_only_there():
    touching = 0
    for scene in SCENES:
        for one, other, is_touching in scene.meetings():
            most = 0
            for t in range(NUM_FRAMES):
                covered = np.zeros((SIDE, SIDE), int)
                for mover in (one, other):
                    if (found := mover_pixels(mover, t, scene.camera)) is not None:
                        covered[found[0]] += found[1]
                most = max(most, (covered == 2).sum())
            assert (most >= 16) if is_touching else (most == 0)
            touching += is_touching
    assert touching > 20


def test_parts_have_no_seed_in_common():
    firsts = sorted(FIRST_SEEDS.values())
    assert min(np.diff(firsts)) >= 500_000
    assert max(FIRST_SEEDS, key=FIRST_SEEDS.get) == "train"


def test_letters_are_asked_in_the_order_in_which_they_flash():
    for scene in SCENES:
        starts = [flash.start for flash in scene.flashes]
        assert starts == sorted(starts)
        asked = answers(scene, "letter")
        letters = [flash.letter for flash in scene.flashes] or ["none"]
        assert asked["which letter flashed first ?"] == letters[0]
        assert asked["which letter flashed last ?"] == letters[-1]


def test_a_still_scene_changes_by_noise_and_light_only_where_nothing_happens():
    scene = next(s for s in SCENES if s.level == "still" and not s.flashes)
    frames = render(scene) / scene.gains[:, None, None, None]
    is_background = np.ones((SIDE, SIDE), bool)
    for mover in scene.movers:
        x, y = np.nanmean(mover.centres, axis=0).astype(int)
        is_background[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = False
    assert np.abs(frames[0] - frames[-1])[is_background].mean() < 5


@pytest.mark.slow
def test_every_kind_is_asked_and_a_question_alone_does_not_give_its_answer():
    found = defaultdict(lambda: defaultdict(Counter))
    for seed in range(1500):
        for question in ask(draw_scene(seed)):
            found[question.kind][question.text][question.answer] += 1
    assert set(found) == set(KINDS)
    for kind, texts in found.items():
        total = sum(sum(counts.values()) for counts in texts.values())
        best = sum(max(counts.values()) for counts in texts.values())
        assert total >= 1000
        assert best / total < 0.8, f"{kind} can be answered blindly"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--videos", "0"], "--videos: '0'; expected a whole number of at least 1"),
        (["--videos", "few"], "--videos: 'few'; expected a whole number of at least 1"),
        (["--skip", "-1"], "--skip: '-1'; expected a whole number of at least 0"),
        (["--per-kind", "0"], "--per-kind: '0'; expected a whole number of at least 1"),
        (["--skip", "499999", "--videos", "2"], "part test has 500000 scenes"),
        (["--part", "validation", "--videos", "1000001"], "part validation has 1000000 scenes"),
    ],
    ids=str,
)
def test_videos_that_cannot_be_made_are_refused_and_nothing_is_written(
    tmp_path, capsys, arguments, said
):
    with pytest.raises(SystemExit):
        make_videos([str(tmp_path / "toy"), *arguments])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()


def test_a_folder_with_toy_videos_is_not_written_over(tmp_path, capsys):
    make_videos([str(tmp_path), "--videos", "1"])
    before = (tmp_path / "questions.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        make_videos([str(tmp_path), "--videos", "1", "--skip", "1"])
    assert "holds toy videos already" in capsys.readouterr().err
    assert (tmp_path / "questions.jsonl").read_bytes() == before
    assert len(list((tmp_path / "videos").iterdir())) == 1


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "toy").write_text("mine")
    with pytest.raises(SystemExit):
        make_videos([str(tmp_path / "toy"), "--videos", "1"])
    assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "toy").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [FIRST_SEEDS["demo"] + 1, FIRST_SEEDS["demo"] + 2])
def test_the_same_scene_gives_the_same_file_every_time(tmp_path, seed):
    scene = draw_scene(seed)
    files = set()
    for _ in range(30):
        write_video(scene, tmp_path / "video.mp4")
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1


def test_videos_are_written_that_the_pipeline_decodes_to_nearly_the_same_frames(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "examples.toyworld.make_videos", tmp_path, "--videos", "4"],
        cwd=REPOSITORY,
        check=True,
    )
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert {json.loads(line)["level"] for line in lines} == set(LEVELS)
    assert {json.loads(line)["kind"] for line in lines} == set(KINDS)
    with FrameReader(DecodeConfig(), SamplingConfig(fps=4.0)) as reader:
        for number, path in enumerate(sorted((tmp_path / "videos").iterdir())):
            sampled = reader.read(path)
            frames = render(draw_scene(number))
            assert sampled.frames.shape == (NUM_FRAMES, SIDE, SIDE, 3)
            assert np.abs(sampled.frames.astype(float) - frames).mean() < 6

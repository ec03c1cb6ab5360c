"""Training of the toy world's model: what it learns from, and that it can be stopped."""

import dataclasses
import fcntl
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from examples.toyworld.checkpoint import fresh_model, train_tokenizer
from examples.toyworld.draw import draw_scene
from examples.toyworld.forward import NO_TARGET, PackedForward
from examples.toyworld.labels import GROUPS, NO_LABEL, TOKEN_SIDE, token_labels
from examples.toyworld.lessons import SEEDS_OF_A_LESSON, Lessons, choose_questions
from examples.toyworld.losses import POOL, Weights, answer_loss, pictures
from examples.toyworld.masks import mover_pixels
from examples.toyworld.optimizer import MixedPrecision, _average
from examples.toyworld.questions import ask
from examples.toyworld.render import render
from examples.toyworld.scene import BOX, COLOURS, NUM_FRAMES, SIDE
from examples.toyworld.stages import DROPPING_STAGES, STAGES
from examples.toyworld.token_frames import NUM_TOKENS, draw_keep_index, in_order, token_frames
from examples.toyworld.train import LOG_NAME, main
from examples.toyworld.training import Training
from examples.toyworld.training_state import read_state, training_kind, write_state
from schemas.errors import ConfigError

SCENES = [draw_scene(seed) for seed in range(40)]
COLOUR, LETTER = list(GROUPS).index("colour"), list(GROUPS).index("letter")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def lessons(tokenizer, numbers, part=(0, 1)):
    return list(Lessons(tokenizer, seed=0, numbers=numbers, num_videos=4, part=part))


def under(frames, t, cell):
    """Pixels of one token, ``(2, 16, 16, 3)``."""
    y, x = np.array(divmod(cell, SIDE // TOKEN_SIDE)) * TOKEN_SIDE
    return frames[2 * t : 2 * t + 2, y : y + TOKEN_SIDE, x : x + TOKEN_SIDE].astype(float)


def test_a_token_with_the_label_of_a_colour_covers_pixels_of_it():
    checked = 0
    for scene in SCENES:
        if scene.camera.far.any():
            continue
        frames = render(scene) / scene.gains[:, None, None, None]
        labels = token_labels(scene)[COLOUR]
        for t, cell in np.argwhere(labels != NO_LABEL):
            colour = list(COLOURS.values())[labels[t, cell]]
            distance = np.abs(under(frames, t, cell) - colour).max(axis=-1)
            checked += 1
            assert (distance < 25).sum() > 10
    assert checked > 300


def test_a_token_with_the_label_of_a_letter_covers_its_bright_dots():
    checked = 0
    for scene in SCENES:
        frames = render(scene)
        labels = token_labels(scene)[LETTER]
        for t, cell in np.argwhere(labels != NO_LABEL):
            pixels = under(frames, t, cell).min(axis=-1)
            assert ((pixels > 205).any(axis=(1, 2)) & (pixels < 50).any(axis=(1, 2))).all()
            checked += 1
    assert checked > 40


def is_covered(scene):
    """Where a thing or a letter's box lies, ``(NUM_FRAMES, SIDE, SIDE)``."""
    covered = np.zeros((NUM_FRAMES, SIDE, SIDE), bool)
    for frame, picture in enumerate(covered):
        for mover in scene.movers:
            if (found := mover_pixels(mover, frame, scene.camera)) is not None:
                picture[found[0]] |= found[1]
    for flash in scene.flashes:
        x, y = flash.corner
        covered[flash.start : flash.stop, y : y + BOX[1], x : x + BOX[0]] = True
    return covered


def test_the_background_has_no_label():
    for scene in SCENES:
        covered = is_covered(scene)
        for _, t, cell in np.argwhere(token_labels(scene) != NO_LABEL):
            assert under(covered, t, cell).any(axis=(1, 2)).all()


def test_a_lesson_is_the_same_again_and_two_processes_share_it(tokenizer):
    [whole] = lessons(tokenizer, range(7, 8))
    [again] = lessons(tokenizer, range(7, 8))
    assert torch.equal(whole.frames, again.frames)
    assert torch.equal(whole.targets, again.targets)
    for rank in range(2):
        [part] = lessons(tokenizer, range(7, 8), part=(rank, 2))
        assert torch.equal(part.frames, whole.frames[rank::2])
        assert torch.equal(part.input_ids, whole.input_ids[rank::2])
        assert torch.equal(part.labels, whole.labels[rank::2])


def test_no_two_lessons_of_a_stage_share_a_video(tokenizer):
    videos = {
        frames.numpy().tobytes()
        for lesson in lessons(tokenizer, range(3))
        for frames in lesson.frames
    }
    assert len(videos) == 3 * 4
    assert max(stage.num_videos for stage in STAGES) <= SEEDS_OF_A_LESSON


def test_hints_stand_at_the_words_that_name_a_thing(tokenizer):
    names = {*COLOURS, "circle", "square", "triangle", "cross", "ring", "diamond", *"ACEHLTXZ"}
    [lesson] = lessons(tokenizer, range(1))
    is_hint = lesson.hints != NO_TARGET
    assert is_hint.sum() > 20
    for word in tokenizer.convert_ids_to_tokens(lesson.input_ids[is_hint].tolist()):
        assert word.removeprefix("Ġ") in names


def test_answers_of_a_kind_are_chosen_more_evenly_than_they_are_asked():
    scenes = [draw_scene(seed) for seed in range(300)]
    for kind, rarer in (("touch", "yes"), ("change", "none")):
        shares = []
        for questions in (
            (ask(scene) for scene in scenes),
            (choose_questions(scene, 6) for scene in scenes),
        ):
            answers = Counter(q.answer for asked in questions for q in asked if q.kind == kind)
            shares.append(answers[rarer] / answers.total())
        fair = 1 / 2 if kind == "touch" else 1 / 7
        assert abs(shares[1] - fair) < 0.95 * abs(shares[0] - fair)


def test_a_coarse_picture_lies_at_the_token_that_covers_it():
    frames = torch.zeros(1, NUM_FRAMES, SIDE, SIDE, 3, dtype=torch.uint8)
    frames[0, 5, 2 * TOKEN_SIDE : 2 * TOKEN_SIDE + POOL, 3 * TOKEN_SIDE :][..., :POOL, 1] = 255
    values = pictures(frames)[0]
    across = SIDE // TOKEN_SIDE
    [[token, value]] = (values > 0).nonzero().tolist()
    assert token == 2 * across * across + 2 * across + 3
    assert value == 1 * 3 * (TOKEN_SIDE // POOL) ** 2 + 1 * (TOKEN_SIDE // POOL) ** 2


def test_only_answers_ends_and_hints_enter_the_loss_each_with_its_weight(tokenizer):
    [lesson] = lessons(tokenizer, range(1))
    logits = torch.randn(*lesson.input_ids.shape, len(tokenizer))
    end = tokenizer.eos_token_id

    def loss(logits, **weights):
        return answer_loss(logits, lesson, Weights(**weights), end).item()

    other = logits.clone()
    is_free = (lesson.targets == NO_TARGET) & (lesson.hints == NO_TARGET)
    other[is_free] = 0
    assert loss(other, hint=1) == loss(logits, hint=1)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), lesson.targets.flatten(), reduction="none"
    ).view_as(lesson.targets)
    is_end = lesson.targets == end
    is_answer = (lesson.targets != NO_TARGET) & ~is_end
    expected = losses[is_answer].mean() + 0.25 * losses[is_end].mean()
    assert loss(logits, end=0.25) == pytest.approx(expected.item(), rel=1e-5)
    hints = torch.nn.functional.cross_entropy(logits.flatten(0, 2), lesson.hints.flatten())
    assert loss(logits, hint=2) - loss(logits) == pytest.approx(2 * hints.item(), rel=1e-4)


def test_token_frames_encoded_in_two_lots_are_those_encoded_at_once(tokenizer):
    forward = PackedForward(fresh_model(tokenizer, seed=0))
    frames = torch.from_numpy(render(SCENES[0]))[None]
    numbers = torch.randperm(NUM_FRAMES // 2)
    with torch.no_grad():
        seen, rest = (
            forward.visual_tokens(token_frames(frames, part)) for part in (numbers[:5], numbers[5:])
        )
        visual, deepstack = in_order(seen, rest, numbers)
        expected, expected_layers = forward.visual_tokens(frames)
    torch.testing.assert_close(visual, expected, atol=1e-4, rtol=1e-4)
    for layer, expected_layer in zip(deepstack, expected_layers, strict=True):
        torch.testing.assert_close(layer, expected_layer, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("examples.toyworld.training.SAVE_EVERY", 1)
    stages = tuple(dataclasses.replace(stage, steps=2, num_videos=2) for stage in DROPPING_STAGES)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    for _ in Training(tmp_path / "whole", seed=5, stages=stages).run():
        pass
    for told in Training(tmp_path / "stopped", seed=5, stages=stages).run():
        if told["stage"] == "read":
            break
    for told in Training(tmp_path / "stopped", seed=5, stages=stages).run():
        assert told["stage"] in ("read", "both")
    whole, stopped = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert whole == stopped


LOOKING_TWICE = (dataclasses.replace(STAGES[0], steps=2, num_videos=2),) * 2


def _train_together(rank, folder, meeting, last_step):
    """One of two processes; both are gone at ``last_step``, before it is saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2)
    for told in Training(folder, seed=5, stages=LOOKING_TWICE).run():
        if told["step"] == last_step:
            return


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_that_were_stopped_end_with_the_weights_of_two_that_were_not(tmp_path):
    kind = training_kind(5, 2, LOOKING_TWICE)
    for name, last_steps in {"whole": [None], "stopped": [4, None]}.items():
        folder = tmp_path / name
        folder.mkdir()
        for number, last_step in enumerate(last_steps):
            meeting = (folder / f"meeting-{number}").as_uri()
            spawn(_train_together, (folder, meeting, last_step), nprocs=2)
            assert read_state(folder, kind)["step"] == (2 if last_step else 4)
    whole, stopped = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_only_the_last_stage_of_the_dropping_training_drops_tokens():
    assert [stage.least_kept for stage in STAGES] == [1, 1, 1]
    assert [stage.least_kept for stage in DROPPING_STAGES] == [1, 1, 0.1]
    assert DROPPING_STAGES[:2] == STAGES[:2]


def test_all_tokens_are_kept_where_none_may_be_dropped():
    kept = draw_keep_index(np.random.default_rng(0), 1.0)
    assert kept.tolist() == list(range(NUM_TOKENS))


def test_half_of_the_dropping_lessons_keep_a_share_of_the_tokens_that_varies():
    rng = np.random.default_rng(0)
    kept = [draw_keep_index(rng, 0.1) for _ in range(400)]
    assert all((index.diff() > 0).all() for index in kept)
    shares = torch.tensor([len(index) / NUM_TOKENS for index in kept])
    assert 0.4 < (shares == 1).float().mean() < 0.6
    below = shares[shares < 1]
    assert below.min() > 0.095
    assert abs(below.mean() - 0.55) < 0.05


def begin(folder, **changes):
    """Leave the state of a training that was begun with the default stages and two processes."""
    kind = dataclasses.replace(training_kind(1, 2, STAGES), **changes)
    write_state(folder, kind, {"weights": {}, "optimizers": {}, "step": 0})


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({}, ["--seed", "2"], "a training with seed 1, now 2; give another folder"),
        ({}, ["--seed", "1", "--processes", "1"], "a training with processes 2, now 1;"),
        ({}, ["--seed", "1", "--drop-tokens"], "other stages (--drop-tokens or not);"),
        ({"sources": "old"}, ["--seed", "1"], "another state of examples/toyworld;"),
    ],
)
def test_a_training_that_was_begun_otherwise_is_refused_in_one_line(
    tmp_path, capsys, changes, arguments, said
):
    begin(tmp_path, **changes)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_training_itself_refuses_one_that_was_begun_otherwise(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigError, match="seed 1, now 2, processes 2, now 1"):
        Training(tmp_path, seed=2)


def test_a_state_that_is_none_is_refused(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"half")
    with pytest.raises(ConfigError, match=r"training\.pt is no training that can go on"):
        Training(tmp_path, seed=2)


def test_two_trainings_in_one_folder_at_once_are_refused(tmp_path, capsys):
    with (tmp_path / LOG_NAME).open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main([str(tmp_path)])
    assert "another process trains in" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--processes", "0"]])
def test_a_seed_of_another_part_and_no_process_are_refused(tmp_path, arguments):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), *arguments])
    assert not (tmp_path / "model").exists()


def test_the_copy_that_is_trained_turns_positions_as_the_checkpoint_does(tokenizer):
    mixed = MixedPrecision(fresh_model(tokenizer, seed=0))
    assert {weight.dtype for weight in mixed.working.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in mixed.working.buffers()} == {torch.float32}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model")])
    assert "cannot write to the folder" in capsys.readouterr().err


def _average_in_process(rank, folder):
    dist.init_process_group("gloo", (folder / "meeting").as_uri(), rank=rank, world_size=2)
    gradients = [torch.full((3,), float(rank)), torch.full((2, 2), 4.0 * rank)]
    _average(gradients)
    torch.save(gradients, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_step_with_the_mean_of_their_gradients(tmp_path):
    spawn(_average_in_process, (tmp_path,), nprocs=2)
    for rank in range(2):
        small, square = torch.load(tmp_path / f"{rank}.pt")
        assert small.tolist() == [0.5] * 3
        assert square.tolist() == [[2.0, 2.0]] * 2

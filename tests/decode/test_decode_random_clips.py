"""Clips of random make: the frame got is the frame asked for, by every decoder that takes it."""

import numpy as np
import pytest

from pipeline.decode import FrameReader
from pipeline.decode.clips import read_counter
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError
from tests.decode.recipes import random_recipe, write_recipe

BATCH = 12
NUM_BATCHES = 20


@pytest.fixture(scope="module")
def readers():
    sampling = {"auto": SamplingConfig(fps=1000)}
    sparse = SamplingConfig(num_frames=7)
    made = {
        decoder: FrameReader(DecodeConfig(decoder=decoder), sampling.get(decoder, sparse))
        for decoder in ("auto", "pyav", "decord")
    }
    yield made
    for reader in made.values():
        reader.close()


def assert_right(readers, path, recipe):
    everything = readers["auto"].read(path)
    assert everything.frame_indices.tolist() == list(range(len(recipe.times)))
    for decoder, reader in readers.items():
        if decoder == "decord" and everything.probe.decord_objection:
            with pytest.raises(DecodeError) as caught:
                reader.read(path)
            assert caught.value.kind == "unsupported_codec"
            continue
        sample = reader.read(path)
        assert [read_counter(frame) for frame in sample.frames] == sample.frame_indices.tolist()
        np.testing.assert_array_equal(sample.frames, everything.frames[sample.frame_indices])
        assert sample.num_bad_packets == 0
        if recipe.has_pts:
            assert sample.probe.fps == pytest.approx(recipe.fps, rel=0.011)


@pytest.mark.parametrize(
    "batch", [pytest.param(n, marks=[] if n == 0 else pytest.mark.slow) for n in range(NUM_BATCHES)]
)
def test_random_clips_give_the_frames_asked_for(readers, tmp_path, batch):
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        recipe = random_recipe(seed)
        path = tmp_path / f"{seed}{recipe.suffix}"
        write_recipe(path, recipe)
        try:
            assert_right(readers, path, recipe)
        except (AssertionError, DecodeError) as error:
            raise AssertionError(f"seed {seed}: {recipe}") from error

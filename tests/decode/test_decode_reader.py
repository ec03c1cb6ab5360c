"""The reader and its child: hangs, deaths, bounded memory, and what the parent never loads."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import FrameReader, decoder_versions
from pipeline.decode import reader as reader_module
from pipeline.decode.clips import read_counter, write_counter_clip, write_scene_clip
from schemas.config import DecodeConfig, SamplingConfig
from schemas.errors import DecodeError

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/videos/real"
ALL = SamplingConfig(fps=1000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "plain.mp4"
    write_counter_clip(path, num_frames=30)
    return path


@pytest.fixture(scope="module")
def large_clip(tmp_path_factory):
    """More frames than both slots of the shared memory hold."""
    path = tmp_path_factory.mktemp("clips") / "large.mp4"
    write_counter_clip(path, num_frames=24, width=1280, height=720)
    return path


def counters(sample):
    return [read_counter(frame) for frame in sample.frames]


@pytest.mark.slow
def test_a_child_that_hangs_is_killed_and_the_next_video_is_read(clip):
    hurried = DecodeConfig(deadline_seconds=6, deadline_per_second=0)
    with FrameReader(hurried, ALL) as reader:
        reader.probe(clip)
        hanging = reader.child_pid
        os.kill(hanging, signal.SIGSTOP)
        with pytest.raises(DecodeError, match="deadline of 6 s") as caught:
            reader.read(clip)
        assert caught.value.kind == "timeout"
        with pytest.raises(ProcessLookupError):
            os.kill(hanging, 0)
    with FrameReader(DecodeConfig(), ALL) as reader:
        reader.probe(clip)
        assert counters(reader.read(clip)) == list(range(30))


def strike_first_batch(reader, signal_number):
    """A resize that hits the child once, while later frames are still to come."""
    struck = []

    def resize(batch, probe, num_frames):
        if not struck:
            struck.append(reader.child_pid)
            os.kill(reader.child_pid, signal_number)
        return batch

    return resize, struck


def test_a_child_killed_midway_is_a_decoder_crash_and_the_next_video_is_read(large_clip, clip):
    with FrameReader(DecodeConfig(decoder="pyav"), ALL) as reader:
        resize, _ = strike_first_batch(reader, signal.SIGKILL)
        with pytest.raises(DecodeError, match="SIGKILL") as caught:
            reader.read(large_clip, resize=resize)
        assert caught.value.kind == "decoder_crash"
        assert counters(reader.read(clip)) == list(range(30))


def test_an_idle_child_that_died_is_replaced_without_a_word(clip):
    with FrameReader(DecodeConfig(), ALL) as reader:
        reader.probe(clip)
        first = reader.child_pid
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert counters(reader.read(clip)) == list(range(30))
        assert reader.child_pid != first


def test_a_read_in_another_thread_can_be_interrupted(clip):
    """The child is stopped, so without the interruption this read would never end."""
    with FrameReader(DecodeConfig(deadline_seconds=1e6), ALL) as reader:
        reader.probe(clip)
        os.kill(reader.child_pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(reader.read, clip)
            reader.interrupt()
            with pytest.raises(DecodeError) as caught:
                reading.result(timeout=30)
        assert caught.value.kind == "decoder_crash"


def test_an_interrupt_of_the_terminal_is_left_to_the_parent(clip):
    with FrameReader(DecodeConfig(), ALL) as reader:
        reader.probe(clip)
        first = reader.child_pid
        os.kill(first, signal.SIGINT)
        assert counters(reader.read(clip)) == list(range(30))
        assert reader.child_pid == first


def test_a_child_is_reused_and_replaced_when_old(clip, monkeypatch):
    monkeypatch.setattr(reader_module, "RECYCLE_AFTER", 2)
    with FrameReader(DecodeConfig(), ALL) as reader:
        pids = []
        for _ in range(3):
            reader.probe(clip)
            pids.append(reader.child_pid)
    assert pids[0] == pids[1] != pids[2]


def open_descriptors():
    """Those that are open apart from the one that lists them."""
    return [fd for fd in map(str, Path("/proc/self/fd").iterdir()) if Path(fd).exists()]


def test_closing_ends_the_child_and_leaves_no_descriptor_behind(clip):
    before = open_descriptors()
    with FrameReader(DecodeConfig(), ALL) as reader:
        reader.read(clip)
        child = reader.child_pid
    assert set(open_descriptors()) <= set(before)  # clients of other tests close theirs any time
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_resize_sees_every_frame_once_in_small_batches_and_its_result_is_kept(large_clip):
    seen = []

    def shrink(batch, probe, num_frames):
        assert (probe.height, probe.width, num_frames) == (720, 1280, 24)
        seen.append(len(batch))
        return batch[:, ::2, ::2]

    with FrameReader(DecodeConfig(), ALL) as reader:
        sample = reader.read(large_clip, resize=shrink)
    assert sample.frames.shape == (24, 360, 640, 3)
    assert sum(seen) == 24
    assert max(seen) * 1280 * 720 * 3 <= 16 * 2**20


def test_an_error_in_resize_reaches_the_caller_and_the_next_video_is_read(large_clip, clip):
    def fail(batch, probe, num_frames):
        raise ZeroDivisionError

    with FrameReader(DecodeConfig(), ALL) as reader:
        with pytest.raises(ZeroDivisionError):
            reader.read(large_clip, resize=fail)
        assert counters(reader.read(clip)) == list(range(30))


@pytest.mark.slow
def test_child_memory_is_bounded_however_many_frames_are_sampled(tmp_path):
    path = tmp_path / "many.mp4"
    write_counter_clip(path, num_frames=120, width=640, height=384)
    peaks = {}
    for num_frames in (20, 120):
        config = SamplingConfig(num_frames=num_frames)
        with FrameReader(DecodeConfig(decoder="pyav"), config) as reader:
            reader.read(path, resize=lambda batch, probe, total: batch[:, :8, :8])
            status = Path(f"/proc/{reader.child_pid}/status").read_text()
        peaks[num_frames] = next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    frames_kib = 120 * 640 * 384 * 3 // 1024
    assert peaks[120] - peaks[20] < frames_kib // 2


def test_more_samples_than_frames_repeat_frames(tmp_path):
    path = tmp_path / "short.mp4"
    write_counter_clip(path, num_frames=3)
    with FrameReader(DecodeConfig(), SamplingConfig(num_frames=6)) as reader:
        sample = reader.read(path)
    assert counters(sample) == sample.frame_indices.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("name", ["stream.ts", "b frames \u89c6\u9891 %d.mkv", "two threads.mp4"])
def test_sparse_frames_of_every_container_are_the_right_ones(tmp_path, name, decoder):
    path = tmp_path / name
    write_counter_clip(path, num_frames=100, gop=10, bframes=3)
    with FrameReader(DecodeConfig(decoder=decoder, threads=2), SamplingConfig(num_frames=9)) as r:
        sample = r.read(path)
    assert counters(sample) == sample.frame_indices.tolist()
    assert sample.probe.num_frames == 100


def test_the_parent_loads_no_native_decoder(clip):
    program = (
        "import sys\n"
        "from pipeline.decode import FrameReader, decoder_versions\n"
        "from schemas.config import DecodeConfig, SamplingConfig\n"
        "with FrameReader(DecodeConfig(), SamplingConfig()) as reader:\n"
        "    assert len(reader.read(sys.argv[1]).frames) == 4\n"
        "assert decoder_versions('auto')['av']\n"
        "print(sorted({'av', 'decord', 'torch', 'ray', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(clip)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_versions_name_the_libraries_a_policy_may_use():
    assert set(decoder_versions("pyav")) == set(decoder_versions("auto")) == {"av"}
    assert "av" in decoder_versions("decord")


def test_a_scene_is_the_same_each_time_and_readable(tmp_path):
    samples = []
    with FrameReader(DecodeConfig(), ALL) as reader:
        for name in ("a.mp4", "b.mp4"):
            write_scene_clip(tmp_path / name, seed=3, seconds=1)
            samples.append(reader.read(tmp_path / name).frames)
    np.testing.assert_array_equal(*samples)
    assert samples[0].shape == (12, 192, 320, 3)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the clips of ../shared are not here")
def test_decord_and_pyav_agree_bit_for_bit_on_real_clips():
    sampling = SamplingConfig(num_frames=8)
    num_compared = 0
    with (
        FrameReader(DecodeConfig(decoder="decord"), sampling) as decord,
        FrameReader(DecodeConfig(), sampling) as auto,
    ):
        for path in sorted(REAL.glob("*.[mw]*")):
            plain = auto.read(path)
            assert plain.num_bad_packets == 0
            if not plain.probe.decord_objection:
                same = decord.read(path).frames
                np.testing.assert_array_equal(same, plain.frames, err_msg=path.name)
                num_compared += 1
    assert num_compared >= 7

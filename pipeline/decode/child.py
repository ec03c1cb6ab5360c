"""The decode child: ``python -m pipeline.decode.child FD``, where native decoders may crash.

It answers one request at a time on the Unix socket FD, each a JSON message with the descriptor of
a shared memory file, until the other side hangs up:

    -> {op: "read" | "probe", path, decoder: "auto" | "decord" | "pyav" | "salvage", ...}
    <- {event: "probed", probe, decoder}            how long the video is, who will decode it
    <- {event: "sampled", shape, ...}               how many frames come, how large they are
    <- {event: "frames", slot, num_frames}          a batch lies in that slot of the memory
    -> {op: "release"}                              that slot may be overwritten
    <- {event: "done", num_rescaled_frames} or {event: "failed", kind, message}
"""

import ctypes
import dataclasses
import mmap
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt

from pipeline.decode.decord_frames import decode_batch
from pipeline.decode.picture import PictureMaker
from pipeline.decode.pyav_frames import decode_frames
from pipeline.decode.salvage import find_good_frames, salvage_frames
from pipeline.decode.sniff import sniff_demuxer
from pipeline.decode.timeline import Timeline, scan_timeline
from pipeline.decode.wire import Message, receive_message, send_message
from pipeline.sampling import sample_frame_indices
from schemas.config import SamplingConfig
from schemas.errors import DecodeError
from schemas.video import VideoProbe

SLOT_BYTES = 16 * 2**20
"""A batch is as many frames as fit, at least one."""

NUM_SLOTS = 2
"""One batch is decoded while the other is looked at."""

_PR_SET_PDEATHSIG = 1
_STDERR = 2


@dataclass(frozen=True, slots=True)
class _Sample:
    """Sampled frames about to be decoded: ``frames`` yields each distinct index once."""

    frame_indices: npt.NDArray[np.int64]
    frames: Iterator[npt.NDArray[np.uint8]]
    probe: VideoProbe
    pictures: PictureMaker
    num_bad_packets: int


def main() -> None:
    """Answer requests until the other side hangs up."""
    _die_with_parent()
    av.logging.set_level(None)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        while True:
            try:
                request, fds = receive_message(channel, max_fds=1)
            except EOFError:
                return
            if request["op"] == "release":
                # It crossed the failure of the request before on its way.
                continue
            try:
                _answer(channel, request, fds[0])
            finally:
                os.close(fds[0])


def _answer(channel: socket.socket, request: Message, memory_fd: int) -> None:
    os.ftruncate(_STDERR, 0)
    try:
        path = request["path"]
        timeline = scan_timeline(
            path, sniff_demuxer(path), max_frame_pixels=request["max_frame_pixels"]
        )
        _raise_objection(request, timeline)
        decoder = _choose_decoder(request, timeline)
        probe = dataclasses.asdict(timeline.probe)
        send_message(channel, {"event": "probed", "probe": probe, "decoder": decoder})
        done: Message = {"event": "done"}
        if request["op"] == "read":
            sample = _sample(request, timeline, decoder)
            _stream_frames(channel, sample, memory_fd)
            done["num_rescaled_frames"] = sample.pictures.num_rescaled
        send_message(channel, done)
    except DecodeError as error:
        send_message(channel, {"event": "failed", "kind": error.kind, "message": error.message})
    except (ArithmeticError, ValueError) as error:
        message = f"{request['path']}: its header makes no sense ({error}): copy the video again"
        send_message(channel, {"event": "failed", "kind": "unreadable", "message": message})
    except MemoryError:
        message = (
            f"{request['path']}: the decoder ran out of memory; decode fewer or smaller frames"
        )
        send_message(channel, {"event": "failed", "kind": "too_large", "message": message})


def _raise_objection(request: Message, timeline: Timeline) -> None:
    objection = timeline.probe.decord_objection
    if request["op"] == "read" and request["decoder"] == "decord" and objection:
        raise DecodeError(
            "unsupported_codec",
            f"{request['path']}: decord is not known to be right here: {objection}. "
            "Use --decoder auto, which takes PyAV for such videos.",
        )


def _choose_decoder(request: Message, timeline: Timeline) -> str:
    """The decoder a request leads to: "decord", "pyav" or "salvage"."""
    if request["decoder"] in ("decord", "salvage"):
        return str(request["decoder"])
    return "salvage" if timeline.num_bad_packets else "pyav"


def _sampled(request: Message, num_frames: int, fps: float) -> npt.NDArray[np.int64]:
    return sample_frame_indices(num_frames, fps, SamplingConfig(**request["sampling"]))


def _sample(request: Message, timeline: Timeline, decoder: str) -> _Sample:
    path, limit, may_rescale = request["path"], request["max_frame_pixels"], request["may_rescale"]
    if decoder == "salvage":
        salvage = find_good_frames(path, timeline, max_frame_pixels=limit)
        timeline = salvage.timeline
        probe = dataclasses.replace(timeline.probe, num_frames=salvage.num_frames)
        pictures = PictureMaker(path, probe, timeline.orientation, may_rescale=may_rescale)
        places = _sampled(request, salvage.frame_indices.size, probe.fps)
        labels = salvage.labels[np.unique(places)]
        return _Sample(
            frame_indices=salvage.frame_indices[places],
            frames=salvage_frames(path, timeline, labels, pictures, max_frame_pixels=limit),
            probe=probe,
            pictures=pictures,
            num_bad_packets=salvage.num_bad_packets,
        )
    probe = timeline.probe
    pictures = PictureMaker(path, probe, timeline.orientation, may_rescale=may_rescale)
    frame_indices = _sampled(request, probe.num_frames, probe.fps)
    wanted, threads = np.unique(frame_indices).tolist(), request["threads"]
    frames = (
        decode_batch(path, timeline, wanted, threads=threads, complaints=_native_complaints)
        if decoder == "decord"
        else decode_frames(
            path, timeline, wanted, pictures, threads=threads, max_frame_pixels=limit
        )
    )
    return _Sample(frame_indices, frames, probe, pictures, num_bad_packets=0)


def _stream_frames(channel: socket.socket, sample: _Sample, memory_fd: int) -> None:
    height, width = sample.probe.height, sample.probe.width
    frame_bytes = height * width * 3
    per_slot = min(max(1, SLOT_BYTES // frame_bytes), sample.frame_indices.size)
    num_bytes = NUM_SLOTS * per_slot * frame_bytes
    if os.fstat(memory_fd).st_size < num_bytes:
        os.ftruncate(memory_fd, num_bytes)
    send_message(channel, _sampled_message(sample, per_slot))
    flat = np.frombuffer(mmap.mmap(memory_fd, num_bytes), np.uint8)
    _fill_slots(channel, sample, flat.reshape(NUM_SLOTS, per_slot, height, width, 3))


def _sampled_message(sample: _Sample, per_slot: int) -> Message:
    return {
        "event": "sampled",
        "probe": dataclasses.asdict(sample.probe),
        "frame_indices": sample.frame_indices.tolist(),
        "num_bad_packets": sample.num_bad_packets,
        "frames_per_slot": per_slot,
    }


def _fill_slots(channel: socket.socket, sample: _Sample, slots: npt.NDArray[np.uint8]) -> None:
    indices, per_slot = sample.frame_indices, slots.shape[1]
    previous, image = -1, np.empty(0, np.uint8)
    for turn, begin in enumerate(range(0, indices.size, per_slot)):
        if turn >= NUM_SLOTS:
            receive_message(channel)
        slot = turn % NUM_SLOTS
        batch = indices[begin : begin + per_slot].tolist()
        for place, index in enumerate(batch):
            if index != previous:
                image, previous = next(sample.frames), index
            slots[slot, place] = image
        send_message(channel, {"event": "frames", "slot": slot, "num_frames": len(batch)})


def _native_complaints() -> str:
    """The first line native code wrote to stderr since the request began."""
    size = os.fstat(_STDERR).st_size
    return os.pread(_STDERR, min(size, 500), 0).decode("utf-8", "replace").partition("\n")[0]


def _die_with_parent() -> None:
    """Live as long as the parent: not shorter by a Ctrl-C meant for it, nor longer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()

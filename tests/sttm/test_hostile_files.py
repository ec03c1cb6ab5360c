import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from pipeline.plain_pickle import read_plain_pickle
from pipeline.sttm import read_features
from pipeline.sttm_prompt import PromptRule
from schemas.errors import DecodeError
from tests.sttm.extraction import break_metadata, failures, qwen2_metadata, run


class Trap:
    """Pickles as a call; unpickled freely it writes a file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stacked(*parts):
    """A pickle of protocol 4 from opcodes."""
    return b"\x80\x04" + b"".join(parts) + b"."


def named(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


HUGE_MEMO = stacked(b"}", b"r" + struct.pack("<I", 2**31 - 1))
HUGE_STRING = stacked(b"X" + struct.pack("<I", 2**31 - 1) + b"abc")
NO_END = pickle.dumps({"vid": "b"})[:-1]
STATE_ON_A_FUNCTION = stacked(
    named("collections"), named("OrderedDict"), b"\x93", b"}", named("x"), b"K\x01", b"s", b"b"
)
BYTES_OF_A_NUMBER = stacked(
    *(named("builtins"), named("bytearray"), b"\x93", b"\x8a\x05\x00\x00\x00\x00\x10", b"\x85R")
)
HOSTILE_METADATA = {
    "os.system": (lambda mark: pickle.dumps(Trap(os.system, f"touch {mark}")), "posix.system"),
    "eval": (lambda mark: pickle.dumps(Trap(eval, f"open({str(mark)!r}, 'w')")), "builtins.eval"),
    "eval, protocol 0": (
        lambda mark: pickle.dumps(Trap(eval, f"open({str(mark)!r}, 'w')"), protocol=0),
        "opcode",
    ),
    "getattr": (lambda mark: pickle.dumps(Trap(getattr, str, "format")), "builtins.getattr"),
    "torch.load": (lambda mark: pickle.dumps(Trap(torch.load, str(mark))), "torch.serialization"),
    "object array": (
        lambda mark: pickle.dumps(np.array([{}, open], object)),
        "BUILD, as numpy arrays",
    ),
    "number array": (lambda mark: pickle.dumps({"vid": np.float64(1.0)}), "BUILD, as numpy arrays"),
    "instance": (lambda mark: pickle.dumps({"vid": PromptRule}), "pipeline.sttm_prompt.PromptRule"),
    "state on a function": (lambda mark: STATE_ON_A_FUNCTION, "opcode BUILD"),
    "huge memo": (lambda mark: HUGE_MEMO, "2147483647 memo entries"),
    "huge string": (lambda mark: HUGE_STRING, "not unpickled"),
    "huge bytes": (lambda mark: BYTES_OF_A_NUMBER, "builtins.bytearray"),
    "no end": (lambda mark: NO_END, "not unpickled"),
    "empty": (lambda mark: b"", "not unpickled"),
    "a list": (lambda mark: pickle.dumps([1]), "holds list"),
    "too long": (lambda mark: pickle.dumps({"vid": "b" * 2**19}), "over 262144 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE_METADATA)
def test_no_code_in_metadata_is_run(folder, tmp_path, case):
    make, message = HOSTILE_METADATA[case]
    mark = tmp_path / "mark"
    (folder / "metadata" / "b.pkl").write_bytes(make(mark))
    assert run(folder, tmp_path / "cache").exit_code == 3
    row = failures(tmp_path / "cache")["b"]
    assert row["error_kind"] == "unreadable"
    assert message in row["error_message"]
    assert not mark.exists()


def test_the_trap_of_these_tests_would_have_gone_off(tmp_path):
    pickle.loads(pickle.dumps(Trap(os.system, f"touch {tmp_path / 'mark'}")))
    assert (tmp_path / "mark").exists()


def test_code_in_the_storage_of_a_pickled_tensor_is_not_run(folder, tmp_path):
    mark = tmp_path / "mark"
    inner = io.BytesIO()
    torch.save(Trap(os.system, f"touch {mark}"), inner, _use_new_zipfile_serialization=False)
    arguments = (Trap(torch.storage._load_from_bytes, inner.getvalue()), 0, (1, 3), (3, 1), False)
    grid = Trap(torch._utils._rebuild_tensor_v2, *arguments, None)
    break_metadata(folder, lambda values: values.update(video_grid_thw=grid))
    assert run(folder, tmp_path / "cache").exit_code == 3
    assert "no metadata" in failures(tmp_path / "cache")["b"]["error_message"]
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_the_extraction_pickles_is_read(tmp_path, protocol):
    path = tmp_path / "v.pkl"
    path.write_bytes(pickle.dumps(qwen2_metadata("v", (3, 4, 5)), protocol=protocol))
    values = read_plain_pickle(path)
    assert (values["vid"], values["video_sample_fps"]) == ("v", 1.9)
    assert values["video_grid_thw"].integers() == [3, 8, 10]


def test_code_in_features_is_named_and_not_run(folder, tmp_path):
    mark = tmp_path / "mark"
    torch.save(Trap(os.system, f"touch {mark}"), folder / "features" / "b.pt")
    assert run(folder, tmp_path / "cache").exit_code == 3
    message = failures(tmp_path / "cache")["b"]["error_message"]
    assert "posix.system" in message
    assert "weights_only" not in message
    assert not mark.exists()


def test_a_bare_pickle_in_place_of_features_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "v.pt"
    path.write_bytes(pickle.dumps(Trap(os.system, f"touch {mark}")))
    with pytest.raises(DecodeError, match=r"no archive of torch\.save"):
        read_features(path)
    assert not mark.exists()


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    torch.save(torch.zeros(64, 64, 64, 8), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "v.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(DecodeError, match="compressed"):
        read_features(tmp_path / "v.pt")

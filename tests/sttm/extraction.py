"""Extractions as STTM's code leaves them on disk, and the verb that imports them."""

import pickle

import torch
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.storage import open_storage
from pipeline.store.verify import verify_cache

GRIDS = {"a": (3, 4, 5), "b": (6, 2, 2), "long/c": (9, 3, 2)}

WIDTH = 16


def some_features(shape, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn((1, *shape[1:], WIDTH), generator=generator)
    noise = torch.randn((*shape, WIDTH), generator=generator)
    return (first + 0.5 * noise).to(dtype)


def qwen2_metadata(video_id, shape, fps=1.9):
    """What the extraction pickles: its values went through a DataLoader, and stay tensors."""
    frames, height, width = shape
    return {
        "vid": video_id,
        "video_sample_fps": fps,
        "frame_time": torch.tensor([0.0], dtype=torch.float64),
        "video_grid_thw": torch.tensor([[frames, 2 * height, 2 * width]]),
    }


def write_video(folder, video_id, features, metadata):
    features_path = folder / "features" / f"{video_id}.pt"
    metadata_path = folder / "metadata" / f"{video_id}.pkl"
    for path in (features_path, metadata_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(features, features_path)
    metadata_path.write_bytes(pickle.dumps(metadata))
    return features_path, metadata_path


def run(folder, out, *flags, fusion="none"):
    """``tokenreel import-sttm`` for Qwen2-VL."""
    names = ["--model-type", "qwen2_vl", "--encoder-name", "Q"]
    arguments = [str(folder), "--out", str(out), *names, "--fusion", fusion, *flags]
    return CliRunner().invoke(cli, ["import-sttm", *arguments])


def run_llava(folder, out, newline="grid"):
    """``tokenreel import-sttm`` for LLaVA-OneVision."""
    names = ["--model-type", "llava_onevision", "--encoder-name", "L", "--newline", newline]
    return CliRunner().invoke(cli, ["import-sttm", str(folder), "--out", str(out), *names])


def failures(out):
    return {row["video_id"]: row for row in open_cache(out).failed().to_pylist()}


def found_by_verify(out):
    return list(verify_cache(open_storage(out)))


def write_llava(folder, features, num_frames):
    metadata = {
        "vid": "v",
        "video_time": 4.5,
        "frame_time": "0.00s,1.00s",
        "num_frames": num_frames,
    }
    write_video(folder, "v", features, metadata)


def break_metadata(folder, change):
    values = qwen2_metadata("b", GRIDS["b"])
    change(values)
    (folder / "metadata" / "b.pkl").write_bytes(pickle.dumps(values))

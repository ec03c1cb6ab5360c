"""One video of a shard of 64, against other ways to keep the same tensors. Part of bench_loader."""

import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import torch
from loader_cases import (
    Case,
    alternate,
    at_least,
    bare_read,
    build_cache,
    empty_bytes,
    flush,
    scatter,
    shard_file,
)
from safetensors import safe_open

from pipeline.cache import TokenCache

CASE = Case(700, 4 * 2048)
NUM_VIDEOS = 64
CHECKED = (0, 31, 63)
PEERS = ("torch", "safetensors", "pylance", "webdataset")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to read video ``number``; ``bar``: how many times our time it should take."""

    name: str
    read: Callable[[int], torch.Tensor]
    bar: float | None = None
    in_prompt_order: bool = False

    def check(self) -> None:
        """Raise unless this form gives every byte of the videos looked at."""
        for number in CHECKED:
            rows = CASE.prompt_rows if self.in_prompt_order else CASE.stored_rows
            assert torch.equal(self.read(number), rows(number)), (self.name, number)

    def in_random_order(self, seed: int) -> Callable[[], torch.Tensor]:
        numbers = cycle(random.Random(seed).sample(range(NUM_VIDEOS), NUM_VIDEOS))
        return lambda: self.read(next(numbers))


def peers_table(folder: Path) -> TokenCache:
    """Print the table; the cache of 64 videos, in ``folder / "cache"``, is returned."""
    cache = build_cache(folder / "cache", [CASE] * NUM_VIDEOS, per_commit=NUM_VIDEOS)
    forms = our_forms(cache) + bare_forms(cache, folder / "cache")
    forms += safetensors_forms(cache, folder / "cache") + torch_forms(folder)
    forms += lance_forms(folder) + webdataset_forms(folder)
    flush(folder)
    for form in forms:
        form.check()
    medians = alternate(*(form.in_random_order(seed) for seed, form in enumerate(forms)))
    out, load = medians[:2]
    print(f"One video of a shard of {NUM_VIDEOS}, {CASE} each, in random order.")
    print(f"{', '.join(f'{name} {installed(name)}' for name in PEERS)}\n")
    print("| form | ms | x out= | x load |")
    print("|-|-|-|-|")
    for form, seconds in zip(forms, medians, strict=True):
        ratio = f"{seconds / out:.2f}x"
        if form.bar is not None:
            ratio = at_least(seconds / out, form.bar)
        print(f"| {form.name} | {seconds * 1e3:.2f} | {ratio} | {seconds / load:.2f}x |")
    print()
    return cache


def our_forms(cache: TokenCache) -> list[Form]:
    ids = list(cache.ids())
    out = CASE.empty_rows()
    return [
        Form("load, out=", lambda n: cache.load(ids[n], out=out).features, in_prompt_order=True),
        Form("load", lambda n: cache.load(ids[n]).features, in_prompt_order=True),
    ]


def bare_forms(cache: TokenCache, root: Path) -> list[Form]:
    """No product: what is left of a load when nothing is verified, and of that when not placed."""
    rows = [cache.row(video_id) for video_id in cache.ids()]
    shard = shard_file(root, rows[0])
    out, raw = CASE.empty_rows(), empty_bytes(rows[0])
    places = out.view(torch.uint8).numpy().reshape(-1).data
    features = raw[len(raw) - CASE.num_bytes :]

    def scattered(number: int) -> torch.Tensor:
        scatter(shard, rows[number], CASE.num_rows, places)
        return out

    def read(number: int) -> torch.Tensor:
        bare_read(shard, rows[number], raw)
        return as_rows(features)

    return [
        Form("scatter only, nothing verified", scattered, in_prompt_order=True),
        Form("one bare read", read),
    ]


def safetensors_forms(cache: TokenCache, root: Path) -> list[Form]:
    """The library itself on our shard. It maps the file; a copy makes it read."""
    rows = [cache.row(video_id) for video_id in cache.ids()]
    shard = shard_file(root, rows[0])
    out = CASE.empty_rows()

    def mapped(number: int) -> torch.Tensor:
        with safe_open(shard, framework="pt") as file:
            features: torch.Tensor = file.get_tensor(f"{rows[number].key}/features")
        return features

    return [
        Form("safetensors, copied to a tensor", lambda n: out.copy_(mapped(n)), bar=1.5),
        Form("safetensors, cloned", lambda n: mapped(n).clone()),
        Form("safetensors, mapped: nothing is read yet", mapped),
    ]


def torch_forms(folder: Path) -> list[Form]:
    paths = [folder / f"{number}.pt" for number in range(NUM_VIDEOS)]
    for number, path in enumerate(paths):
        torch.save(CASE.stored_rows(number), path)
    out = CASE.empty_rows()

    def mapped(number: int) -> torch.Tensor:
        features: torch.Tensor = torch.load(paths[number], weights_only=True, mmap=True)
        return features

    return [
        Form("torch.load", lambda n: torch.load(paths[n], weights_only=True), bar=3),
        Form("torch.load, mmap=True, copied to a tensor", lambda n: out.copy_(mapped(n)), bar=3),
        Form("torch.load, mmap=True: nothing is read yet", mapped),
    ]


def lance_forms(folder: Path) -> list[Form]:
    """The two ways its guides give: a column of binaries, and a column of blobs."""
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lance
    except ImportError:
        return missing("pylance")
    warnings.filterwarnings("ignore", "The given buffer is not writable")
    videos = (CASE.stored_rows(number) for number in range(NUM_VIDEOS))
    values = [rows.view(torch.uint8).numpy().tobytes() for rows in videos]
    plain = lance.write_dataset(
        pa.table({"features": pa.array(values, pa.large_binary())}), folder / "plain.lance"
    )
    schema = pa.schema([lance.blob_field("features")])
    blobs = lance.write_dataset(
        pa.table({"features": lance.blob_array(values)}, schema=schema),
        folder / "blob.lance",
        data_storage_version="2.2",
    )

    def take(number: int) -> torch.Tensor:
        column = plain.take([number], columns=["features"])["features"]
        return as_rows(column.chunk(0)[0].as_buffer())

    def read_blob(number: int) -> torch.Tensor:
        return as_rows(blobs.read_blobs("features", indices=[number])[0][1])

    return [
        Form("Lance, take of a large_binary", take, bar=8),
        Form("Lance, read_blobs of a blob column", read_blob, bar=8),
    ]


def webdataset_forms(folder: Path) -> list[Form]:
    """One key of a tar: all members before it are read, only its own is decoded."""
    try:
        import webdataset
    except ImportError:
        return missing("webdataset")
    tar = str(folder / "videos.tar")
    with webdataset.TarWriter(tar) as writer:
        for number in range(NUM_VIDEOS):
            writer.write({"__key__": f"video{number:04}", "features.pth": CASE.stored_rows(number)})

    def find(number: int) -> torch.Tensor:
        key = f"video{number:04}"
        videos = webdataset.WebDataset(tar, shardshuffle=False)
        found = videos.select(lambda sample: sample["__key__"] == key).decode()
        features: torch.Tensor = next(iter(found))["features.pth"]
        return features

    return [Form("WebDataset, iterated to its key", find, bar=100)]


def as_rows(data: pa.Buffer | bytes | memoryview) -> torch.Tensor:
    return torch.frombuffer(data, dtype=torch.bfloat16).view(CASE.num_rows, CASE.width)


def missing(package: str) -> list[Form]:
    print(f"{package} is not installed and is left out: pip install --group bench\n")
    return []


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

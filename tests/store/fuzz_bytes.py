"""Corruptions of bytes and of files as a whole."""

import os
from pathlib import Path

from tests.store.fuzz_cache import Corruption


def change_bytes(c: Corruption) -> None:
    path = c.any_file()
    data = bytearray(path.read_bytes())
    at = c.random.randrange(len(data))
    length = min(c.random.choice([1, 8, 64, 1000]), len(data) - at)
    kind = c.random.choice(["bit", "bit", "bits", "random", "zero", "ones", "cut", "delete"])
    if kind == "bit":
        data[at] ^= 1 << c.random.randrange(8)
    elif kind == "bits":
        for place in c.random.choices(range(len(data)), k=20):
            data[place] ^= 1 << c.random.randrange(8)
    elif kind in ("zero", "ones", "random"):
        filling = {"zero": bytes(length), "ones": b"\xff" * length}
        data[at : at + length] = filling.get(kind) or c.random.randbytes(length)
    elif kind == "cut":
        del data[at:]
    else:
        del data[at : at + length]
    path.write_bytes(data)
    c.say(path, f"{kind} at {at}, {length} bytes")


def flip_index(c: Corruption) -> None:
    """One bit of a fragment, in its footer half of the time: no checksum covers that."""
    path = c.random.choice(c.files("index/*"))
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = c.random.randrange(c.random.choice([0, footer]), len(data))
    bit = c.random.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    c.say(path, f"bit {bit} of byte {at}")


def extend(c: Corruption) -> None:
    path = c.any_file()
    data = path.read_bytes()
    more = c.random.choice([b"\0", bytes(4096), data, c.random.randbytes(100), b"PAR1", b"}"])
    is_front = c.random.random() < 0.3
    path.write_bytes(more + data if is_front else data + more)
    c.say(path, f"{len(more)} more bytes {'before' if is_front else 'after'}")


def swap_blocks(c: Corruption) -> None:
    folder = c.random.choice(["shards/*", "shards/*", "index/*"])
    one, two = c.random.choices(c.files(folder), k=2)
    size = c.random.choice([16, 64, 512, 4096])
    datas = {path: bytearray(path.read_bytes()) for path in (one, two)}
    first, second = (c.random.randrange(0, len(datas[p]), 16) for p in (one, two))
    size = min(size, len(datas[one]) - first, len(datas[two]) - second)
    a, b = bytes(datas[one][first : first + size]), bytes(datas[two][second : second + size])
    datas[one][first : first + size] = b
    datas[two][second : second + size] = a
    for path, data in datas.items():
        path.write_bytes(data)
    c.say(one, f"{size} bytes at {first} swapped with {second} of {two.name}")


def swap_files(c: Corruption) -> None:
    one, two = c.random.sample(c.files(), 2)
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    if c.random.random() < 0.7:
        two.write_bytes(a)
    c.say(one, f"swapped with {two.name}")


def replace_file(c: Corruption) -> None:
    """Something else in the place of a file: nothing, a folder, a pipe, a link."""
    path = c.any_file()
    kinds = ["gone", "empty", "folder", "pipe", "outside", "inside", "loop", "nothing", "device"]
    kind = c.random.choice(kinds)
    outside = c.root.parent / "outside"
    same = {"shards": "shards/*", "index": "index/*"}.get(path.parent.name, "manifest.json")
    targets = {
        "outside": c.random.choice([next(outside.glob(same)), Path("/etc/passwd")]),
        "inside": c.random.choice(c.files()),
        "loop": path,
        "nothing": outside / "no such file",
        "device": Path("/dev/zero"),
    }
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.symlink_to(targets[kind])
    c.say(path, f"{kind} {targets.get(kind, '')}")

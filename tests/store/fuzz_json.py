"""Corruptions of JSON: the manifest, and the headers of shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.store.fuzz_cache import Corruption

HUGE = (2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1)


def forge_header(c: Corruption) -> None:
    """The JSON of a shard's header, or the length before it."""
    path = c.random.choice(c.files("shards/*"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if c.random.random() < 0.25:
        forged = c.random.choice([0, 1, 7, length - 1, length + 1, 10**8, 2**32, 2**63, 2**64 - 1])
        path.write_bytes(forged.to_bytes(8, "little") + data[8:])
        c.say(path, f"header length {forged}")
        return
    entries = json.loads(data[8 : 8 + length])
    name = c.random.choice(list(entries))
    forge_json(c, path, entries, [name])
    text = json.dumps(entries).encode()
    if c.random.random() < 0.7:
        text = text[:length].ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def forge_manifest(c: Corruption) -> None:
    """Any field of the manifest; its fingerprint is made to fit two times of three."""
    path = c.root / "manifest.json"
    body = json.loads(path.read_text())
    places = [[name] for name in body]
    places += [
        [name, inner] for name in body if isinstance(body[name], dict) for inner in body[name]
    ]
    place = c.random.choice(places)
    if c.random.random() < 0.08:
        text = c.random.choice(
            ["[" * 100_000, '{"a":' * 100_000, "9" * 6000, "NaN", '"x"', "[1]", "null", "\ud800"]
        )
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        c.say(path, f"{text[:20]}...")
        return
    forge_json(c, path, body, place)
    if c.random.random() < 0.67:
        covered = {name: body[name] for name in body if name not in ("about", "fingerprint")}
        canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
        body["fingerprint"] = hashlib.sha256(canonical.encode()).hexdigest()
        c.say(path, "its fingerprint made to fit")
    path.write_text(json.dumps(body))


def forge_json(c: Corruption, path: Path, body: dict[str, Any], place: list[str]) -> None:
    """Change, drop or add a value at ``place`` or below."""
    holder = body
    for name in place[:-1]:
        holder = holder[name]
    while (
        isinstance(holder[place[-1]], dict | list) and holder[place[-1]] and c.random.random() < 0.6
    ):
        holder = holder[place[-1]]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        place = [*place, c.random.choice(keys)]
    deep: Any = []
    for _ in range(c.random.choice([3, 200])):
        deep = [deep]
    values = [None, True, -1, 0, 1, 1.5, -0.0, float("nan"), float("inf"), "", "x", "\ud800", "a\0"]
    values += [*HUGE, -(2**63), 10**400, [], {}, [1, 2], {"a": 1}, deep, "BF16", [0, 2**62]]
    key, what = place[-1], c.random.choice(["change"] * 6 + ["drop", "add"])
    value = c.random.choice(values)
    if what == "drop":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[c.random.choice(["extra", "", "__class__", key + " "])] = value
    else:
        holder[key] = value
    c.say(path, f"{what} {'.'.join(map(str, place))} {str(value)[:40]!r}")

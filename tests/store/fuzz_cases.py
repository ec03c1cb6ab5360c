"""Corruptions of a real cache, each named FAMILY:SEED and the same whenever it is made again."""

from collections.abc import Callable
from pathlib import Path

from tests.store import fuzz_bytes, fuzz_json, fuzz_rows
from tests.store.fuzz_cache import Corruption

FAMILIES: dict[str, Callable[[Corruption], None]] = {
    "bytes": fuzz_bytes.change_bytes,
    "index": fuzz_bytes.flip_index,
    "extend": fuzz_bytes.extend,
    "blocks": fuzz_bytes.swap_blocks,
    "files": fuzz_bytes.swap_files,
    "place": fuzz_bytes.replace_file,
    "header": fuzz_json.forge_header,
    "manifest": fuzz_json.forge_manifest,
    "row": fuzz_rows.forge_row,
    "layout": fuzz_rows.forge_layout,
    "head": fuzz_rows.forge_head,
    "table": fuzz_rows.forge_table,
}
"""Ways to corrupt a cache, by the name a case begins with."""


def corrupt(root: Path, case: str) -> Corruption:
    """Corrupt the cache at ``root``; what was done."""
    corruption = Corruption(root, case)
    FAMILIES[case.partition(":")[0]](corruption)
    return corruption

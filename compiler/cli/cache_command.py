"""`edgec cache`."""

from __future__ import annotations

import click

from compiler.cli.display import format_bytes, print_json
from compiler.stages.cache import cache_root, clear_cache


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove everything in it; builds then start from the beginning.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(clear: bool, as_json: bool) -> None:
    """Tell where the cache is and how large. EDGEC_CACHE or XDG_CACHE_HOME move it."""
    root = cache_root()
    stages = root / "stages"
    kept = clear_cache() if clear else []
    nbytes = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    entries = sum(1 for _ in stages.iterdir()) if stages.is_dir() else 0
    if as_json:
        print_json({"folder": str(root), "bytes": nbytes, "entries": entries, "kept": kept})
        return
    if kept:
        print(f"Without edgec's mark, and left alone: {', '.join(kept)}. Remove by hand what you do not need.")
    print(f"{root}: {entries} results of stages, {format_bytes(nbytes)}")

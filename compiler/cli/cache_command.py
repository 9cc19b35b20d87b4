"""`edgec cache`."""

from __future__ import annotations

import math
import time
from collections import Counter

import click

from compiler.cli.display import format_bytes, print_json, print_table
from compiler.cli.quantize_options import ByteCount
from compiler.errors import UnusableInput
from compiler.stages import prune
from compiler.stages.cache import cache_root, clear_cache

_DAY_S = 86400


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove everything in it; builds then start from the beginning.")
@click.option("--model", help="Remove what was made of a model, by its name.")
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Remove what was not used for so long.")
@click.option(
    "--max-bytes", type=ByteCount(), help="Remove what was not used for longest until the rest fits, such as 20GB."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(clear: bool, model: str | None, older_than: float | None, max_bytes: int | None, as_json: bool) -> None:
    """Tell where the cache is, how large, and of which models; make it smaller.

    EDGEC_CACHE or XDG_CACHE_HOME move it. Builds keep it below EDGEC_CACHE_LIMIT (50GB; 0 for no limit). What is not in it is
    looked for in EDGEC_SHARED_CACHE, where machines share results: a folder, or what fsspec opens (s3://bucket/cache).
    """
    if older_than is not None and not math.isfinite(older_than):
        raise UnusableInput(f"--older-than is {older_than}; give days as a number.")
    if clear and (model or older_than is not None or max_bytes is not None):
        raise UnusableInput("--clear removes everything; leave --model, --older-than and --max-bytes out.")
    limit = prune.limit_bytes()
    kept = clear_cache() if clear else []
    freed = 0
    if model is not None:
        digests = prune.models_named(model)
        freed += prune.remove([each for each in prune.held() if digests & set(each.sources)])
    if older_than is not None:
        before = time.time() - older_than * _DAY_S
        freed += prune.remove([each for each in prune.held() if each.used_s < before])
    if max_bytes is not None:
        freed += prune.remove(prune.over_limit(prune.held(), max_bytes))
    root, entries = cache_root(), prune.held()
    nbytes = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    models = _by_model(entries)
    if as_json:
        told = {"folder": str(root), "bytes": nbytes, "entries": len(entries), "kept": kept, "freed": freed}
        print_json({**told, "limit": limit, "models": dict(models)})
        return
    if kept:
        print(f"Without edgec's mark, and left alone: {', '.join(kept)}. Remove by hand what you do not need.")
    if freed:
        print(f"Removed {format_bytes(freed)}.")
    most = f" of {format_bytes(limit)} at most" if limit else ""
    print(f"{root}: {len(entries)} results of stages, {format_bytes(nbytes)}{most}")
    if models:
        rows = [[name, format_bytes(taken)] for name, taken in models.most_common()]
        print_table("What was made of each model", ["model", "size"], rows)


def _by_model(entries: list[prune.Held]) -> Counter[str]:
    """Bytes of results by the name of the model that they were made of."""
    names = {digest: name for digest, (name, _) in prune.known_models().items()}
    found: Counter[str] = Counter()
    for each in entries:
        found[next((names[digest] for digest in each.sources if digest in names), "of other files")] += each.nbytes
    return found

"""A model from the Hugging Face hub: only the files that are needed, kept in the hub's own cache."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.model import MODEL_FILES

_DATASET_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>[\w./-]+))?")
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `name`, `org/name` or `org/name@revision`."""
    return bool(_HUB_ID.fullmatch(text)) and not text.startswith((".", "/", "~"))


def fetch_from_hub(hub_id: str) -> tuple[Path, str]:
    """Download what is missing of `org/name[@revision]`; return the folder and `org/name@commit`.

    huggingface_hub does the transfer, shows its progress bars and honours HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and
    HF_TOKEN; the token is never stored by edgec.

    Raises:
        UnusableInput: no such model or revision, access denied, hub not reachable, or offline and not in the cache.
    """
    import huggingface_hub
    from huggingface_hub import constants

    match = _HUB_ID.fullmatch(hub_id)
    assert match is not None
    repo, revision = match["repo"], match["revision"]
    with _explained("model", repo, revision):
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.md", "*.model", "LICEN*", "NOTICE*"]
        if not constants.HF_HUB_OFFLINE:
            info = huggingface_hub.HfApi().model_info(repo, revision=revision)
            patterns = needed_files([sibling.rfilename for sibling in info.siblings or []])
        # By the name that was asked for, not by the commit, so that its cache knows the name when offline.
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    return folder, f"{repo}@{folder.name}"


_TEXT_FILES = (".txt", ".jsonl", ".ndjson", ".parquet")


def fetch_dataset_file(text: str) -> tuple[Path, str]:
    """Download one file of a dataset `org/name[@revision][/path]`; return it and `org/name/path`.

    Without a path, the first file with text whose name has `train` in it, else the first with text.

    Raises:
        UnusableInput: no such dataset or file, access denied, hub not reachable, or offline and not in the cache.
    """
    import huggingface_hub

    match = _DATASET_FILE.fullmatch(text)
    if match is None:
        raise UnusableInput(f"hf:{text} is not of the form hf:org/dataset[@revision][/path/in/it].")
    repo, revision, path = match["repo"], match["revision"], match["path"]
    with _explained("dataset", repo, revision):
        if path is None:
            names = huggingface_hub.HfApi().list_repo_files(repo, revision=revision, repo_type="dataset")
            texts = [name for name in sorted(names) if name.endswith(_TEXT_FILES)]
            path = next((name for name in texts if "train" in name), texts[0] if texts else None)
        if path is not None:
            file = huggingface_hub.hf_hub_download(repo, path, revision=revision, repo_type="dataset")
            return Path(file), f"{repo}/{path}"
    raise UnusableInput(f"The dataset {repo} has no file that ends in {', '.join(_TEXT_FILES)}.")


@contextlib.contextmanager
def _explained(kind: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turn what can go wrong with the hub into one sentence each."""
    from huggingface_hub import errors

    unreachable = (
        f"The hub could not be reached for {repo!r} ({{}}), and there is no folder of that name here. Give a local "
        f"{'folder' if kind == 'model' else 'file'}, try again when the network is there, or set HF_HUB_OFFLINE=1 to "
        "use what was fetched before."
    )
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise UnusableInput(f"The hub has the {kind} {repo}, but no revision {revision!r} of it.") from error
    except errors.GatedRepoError as error:
        raise UnusableInput(f"The {kind} {repo} is gated: accept its terms on the hub and set HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise UnusableInput(
            f"There is no {kind} {repo!r}: no folder of that name here and none on the hub (a private one needs HF_TOKEN)."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise UnusableInput(
            f"The {kind} {repo!r} is no folder here, is not in the hub's cache, and the hub cannot be asked (offline or "
            "not reachable). Give a local folder, or go online once."
        ) from error
    except errors.EntryNotFoundError as error:
        raise UnusableInput(f"The {kind} {repo} has no such file.") from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == 28:
            raise
        raise UnusableInput(unreachable.format(type(error).__name__)) from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise UnusableInput(unreachable.format(type(error).__name__)) from error


def needed_files(names: list[str]) -> list[str]:
    """Of a repository's files, those that a Model is read from, and one set of weights only."""
    wanted = [name for name in names if MODEL_FILES.fullmatch(name)]
    sharded = "model.safetensors.index.json" in wanted
    weights = re.compile(r"model-\d+-of-\d+\.safetensors" if sharded else r"model\.safetensors")
    return [name for name in wanted if not name.endswith(".safetensors") or weights.fullmatch(name)]

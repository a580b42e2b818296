"""From a model's name to the local folder that holds its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import ModelError
from configs.json_files import read_json

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
"""The tiny models that come with the package."""

_CONFIGS = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = "*.safetensors"
_PICKLES = "pytorch_model*.bin"


def looks_like_folder(name: str) -> bool:
    """Tell a path (existing, absolute, or starting with . or ~) from a name on the hub."""
    return Path(name).expanduser().is_dir() or name.startswith(("/", ".", "~"))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files in ``folder``; pickles are never opened and do not count."""
    return sorted(folder.glob(_WEIGHTS))


def check_shards(name: str, folder: Path) -> None:
    """Check that the weights in ``folder`` are one file, or all those that their index names.

    Raises:
        ModelError: no weights, only pickled ones, no index beside several files, an index that
            cannot be read, or files that it names and that are not there.
    """
    again = f"in {folder}; copy or download it again"
    files = [path.name for path in weight_files(folder)]
    if not files and (pickle := next(folder.glob(_PICKLES), None)):
        raise ModelError(
            f"{name}: its weights are a pickle ({pickle}), which may run anything and is not "
            "opened; fetch a revision that has *.safetensors, or, in a container, load it with "
            "the class that its config.json names and call save_pretrained(ANOTHER_FOLDER)"
        )
    if not files:
        raise ModelError(f"{name}: no *.safetensors {again}")
    if any("-of-" not in file for file in files):
        return
    index = folder / "model.safetensors.index.json"
    try:
        named = {str(file) for file in read_json(index)["weight_map"].values()}
    except FileNotFoundError:
        raise ModelError(f"{name}: {len(files)} weight files but no {index.name} {again}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name}: {index} is no index of weights ({error})") from error
    if missing := sorted(named.difference(files)):
        some = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise ModelError(
            f"{name}: {len(missing)} of {len(named)} weight files ({some}) not {again}"
        )


def cached_folder(name: str) -> Path | None:
    """Return where the hub model ``name`` lies complete on this machine, or None.

    Looks at file names only, without torch and without the network.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / ("models--" + name.replace("/", "--")) / "snapshots"
    complete = [folder for folder in snapshots.glob("*") if _complete(folder)]
    return max(complete, key=lambda folder: folder.stat().st_mtime, default=None)


def _complete(folder: Path) -> bool:
    """Say whether config and every weight shard are there ("-00001-of-00006" counts itself)."""
    names = [path.name for path in weight_files(folder) if path.exists()]
    shards = [name for name in names if "-of-" in name]
    wanted = int(shards[0].rsplit("-of-", 1)[1].split(".")[0]) if shards else 1
    return (folder / "config.json").exists() and len(shards or names) >= wanted


def model_folder(name: str, ways_out: str) -> Path:
    """Return the local folder of a model given as a folder or a hub name, downloading if needed.

    Args:
        name: a folder with config.json, or a hub name such as ``llava-hf/llava-1.5-7b-hf``.
        ways_out: what else the user can do, appended to the error.

    Raises:
        ModelError: the folder is not a model's, or the name is neither on this machine nor on
            the hub (or the hub cannot be reached).
    """
    if looks_like_folder(name):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name}: no such model folder (it needs a config.json); {ways_out}")
        return folder
    return cached_folder(name) or _download(name, ways_out)


def config_folder(name: str, ways_out: str) -> Path:
    """Return a folder with a model's config.json (and its tokenizer), but perhaps no weights.

    Args:
        name: as for :func:`model_folder`; from the hub come a few small files only.
        ways_out: what else the user can do, appended to the error.

    Raises:
        ModelError: as :func:`model_folder`.
    """
    if looks_like_folder(name):
        return model_folder(name, ways_out)
    cached = cached_folder(name)
    if cached is not None:
        return cached
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_CONFIGS]))
    except (OSError, ValueError) as error:
        raise _not_found(name, error, ways_out) from error
    return model_folder(str(folder), ways_out)


def _not_found(name: str, error: Exception, ways_out: str) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{name!r} could not be found on this machine nor on the hub ({reason}); {ways_out}"
    )


def _download(name: str, ways_out: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, _WEIGHTS]))
    except (OSError, ValueError) as error:
        raise _not_found(name, error, ways_out) from error
    if not _complete(folder):
        raise ModelError(f"{name!r}: the hub has no complete *.safetensors under it; {ways_out}")
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load reports and bars; what matters in them is checked by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

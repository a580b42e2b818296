"""Which file holds the sound of a clip."""

import os
from pathlib import Path

from configs.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class AudioFiles:
    """The audio files of one split, listed once.

    A file is looked for in {root}/audio/{split}, {root}/{split} and {root}/audio, in each under the
    names {id}_{start}, Y{id}, {id} and Y{id}_{start}, in this order, with .wav, .flac, .ogg, .mp3.
    The root itself may be a link, for the user named it; no link in it that leads out is followed,
    so that an unpacked archive cannot make us read other files of this machine.

    Raises DataError for one of the folders that is such a link, or that cannot be listed.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self.folders = (root / "audio" / split, root / split, root / "audio")
        for folder in reversed(self.folders):  # the error names the link itself
            refuse_leading_out(folder, self._real)
        self._files = {folder: _listed(folder) for folder in self.folders}

    def find(self, youtube_id: str, name: str) -> tuple[Path | None, bool]:
        """Return the clip's file, if any, and whether it was left out for being a link outside."""
        for folder, files in self._files.items():
            for stem in (name, f"Y{youtube_id}", youtube_id, f"Y{name}"):
                for suffix in SUFFIXES:
                    link = files.get(stem + suffix)
                    if link is not None:
                        return self._inside(folder / (stem + suffix), link)
        return None, False

    def named(self, audio: str) -> tuple[Path | None, bool]:
        """Return the same for a file that the manifest names relative to the root."""
        path = self.root / audio
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            return None, False
        return self._inside(path, link=True)  # any folder on the way may be one

    def _inside(self, path: Path, link: bool) -> tuple[Path | None, bool]:
        if link and leads_out(path, self._real):
            return None, True
        return path, False


def leads_out(path: Path, real_root: str) -> bool:
    """Whether a path, with every link in it followed, ends outside of a folder."""
    return not Path(os.path.realpath(path)).is_relative_to(real_root)


def refuse_leading_out(folder: Path, real_root: str) -> None:
    """Raise DataError for a folder that is a link to outside of the data folder."""
    if leads_out(folder, real_root):
        raise DataError(
            f"{folder} leads out of the data folder, to {os.path.realpath(folder)}; only the data "
            "folder itself may be a link: put the sounds into it (cp -al takes no room on the same "
            "disk), or move the whole data folder to their disk and link that"
        )


def _listed(folder: Path) -> dict[str, bool]:
    """Return the names of the audio files in a folder, and whether each is a link."""
    files: dict[str, bool] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                link = entry.is_symlink()
                # Only regular files: opening a pipe would wait for ever.
                regular = os.path.isfile(entry.path) if link else entry.is_file()
                if regular and entry.name.endswith(SUFFIXES):
                    files[entry.name] = link
    except (FileNotFoundError, NotADirectoryError):
        pass  # manifests without audio are read all the same; every clip is then missing
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None
    return files

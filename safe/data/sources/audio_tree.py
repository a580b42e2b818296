"""The audio files below a folder, wherever they lie."""

import os
from pathlib import Path, PurePosixPath

from configs.errors import DataError
from safe.data.audio_files import SUFFIXES, leads_out, refuse_leading_out


class AudioTree:
    """The audio files of a data set, listed once.

    Of linked folders only those directly below the root are looked into. As in `AudioFiles` the
    root may be a link; a file that leads out of it is known but not used.

    Raises DataError for a folder directly below the root that is a link out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._files: set[str] = set()
        self._stems: dict[str, list[str]] = {}
        tops = [root]
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.is_symlink() and entry.is_dir():
                    refuse_leading_out(Path(entry.path), self._real)
                    tops.append(Path(entry.path))
        for top in tops:
            for folder, _, names in os.walk(top):
                for name in names:
                    if name.lower().endswith(SUFFIXES):
                        self._add(Path(folder, name).relative_to(root).as_posix())

    def _add(self, name: str) -> None:
        self._files.add(name)
        self._stems.setdefault(PurePosixPath(name).stem, []).append(name)

    def find(self, name: str, folders: tuple[str, ...] = ()) -> tuple[Path | None, bool]:
        """Return the file with a relative name, directly or below one of `folders`, if any.

        Also says whether a file was left out for being a link that leads outside.
        """
        for folder in ("", *folders):
            path = str(PurePosixPath(folder, name))
            if path in self._files:
                return self._inside(path)
        return None, False

    def stem(self, stem: str, hint: str = "") -> tuple[Path | None, bool]:
        """Return the only file with this name but for its suffix; `hint` stands in its path.

        Raises DataError when there are several.
        """
        found = sorted(self._stems.get(stem, ()))
        if len(found) > 1 and hint:
            found = [name for name in found if hint.lower() in name.lower()] or found
        if len(found) > 1:
            raise DataError(
                f"{self.root}: {stem!r} is the name of {len(found)} audio files ({found[0]}, "
                f"{found[1]}); keep one of them"
            )
        return self._inside(found[0]) if found else (None, False)

    def _inside(self, name: str) -> tuple[Path | None, bool]:
        path = self.root / name
        if not os.path.isfile(path):  # a broken link, or a pipe: opening one would wait for ever
            return None, False
        if leads_out(path, self._real):
            return None, True
        return path, False

"""Where downloaded and derived files live on this machine."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder for everything that can be made or fetched again (not created here).

    `$SAFE_PROBE_CACHE` if set, else `$XDG_CACHE_HOME/safe-probe`, else `~/.cache/safe-probe`.
    An empty variable counts as unset, and the XDG one too when it is a relative path (the XDG
    Base Directory Specification says to ignore those).
    """
    own = os.environ.get("SAFE_PROBE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "safe-probe"

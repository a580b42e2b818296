"""Where the cache lies, by the environment."""

from pathlib import Path

import pytest

from safe.paths import cache_dir


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        ("", "/xdg", "/xdg/safe-probe"),
        (None, "relative", "/home/someone/.cache/safe-probe"),
        (None, None, "/home/someone/.cache/safe-probe"),
        ("~/own", None, "/home/someone/own"),
    ],
)
def test_cache_dir(
    monkeypatch: pytest.MonkeyPatch, own: str | None, xdg: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in (("SAFE_PROBE_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_relative_cache_dir_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFE_PROBE_CACHE", "cache")
    assert cache_dir() == tmp_path / "cache"

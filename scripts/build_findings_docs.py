"""Write docs/findings/ from the catalogue: `python scripts/build_findings_docs.py`."""

from pathlib import Path

from probes.findings.pages import pages


def main(folder: Path) -> None:
    """Write every page, and remove those of findings that do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[1] / "docs" / "findings")

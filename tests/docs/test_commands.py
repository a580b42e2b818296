"""Every command of the documents runs, in order, in a folder per page; or is parsed, and it is
said why (`tests/docs/stand_ins.py`)."""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from configs.model_configs import CONFIGS
from probes.findings.catalogue import CATALOGUE
from safe import cli as train_cli
from safe.data.synthetic import materialize_synthetic
from safe.training import experiment
from safe_probe import cli as probe_cli
from tests.docs import stand_ins
from tests.docs.pages import FINDINGS, PAGES, ROOT, Command, commands, mentioned

MAIN: dict[str, Callable[[list[str]], int]] = {
    "safe-train": train_cli.main, "safe-probe": probe_cli.main,
}  # fmt: skip
PARSER: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "safe-train": lambda: train_cli._parser()[0], "safe-probe": probe_cli.parser,
}  # fmt: skip
_MODULES = {"safe.cli": "safe-train", "safe_probe.cli": "safe-probe"}


def parse(words: list[str]) -> None:
    """Hold the words of one of our programs against its own parser."""
    name, *arguments = words
    errors, code = io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        try:
            PARSER[name]().parse_args(arguments)
        except SystemExit as end:  # also after --help, with 0
            code = int(end.code or 0)
    assert code == 0, f"{shlex.join(words)}\n{errors.getvalue()}"


def why_only_parsed(text: str) -> str | None:
    for pattern, why in stand_ins.ONLY_PARSED.items():
        if re.match(pattern, text):
            return why
    return None


def check_words(text: str) -> None:
    """What can be known of a command that is not run."""
    words = shlex.split(text)
    names = [_MODULES.get(word, Path(word.rstrip(")")).name) for word in words]
    ours = [at for at, name in enumerate(names) if name in PARSER]
    if ours:
        at = ours[0]
        parse([names[at], *words[at + 1 :]])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        asked = {word for word in words[1:] if "=" not in word}  # make T NAME=VALUE
        assert asked <= set(targets), f"no target {words[1:]} in the Makefile"
    elif "pip" in words:
        extras = re.findall(r"\[(\w+)\]", text)
        project = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras), text
    else:
        assert words[0] == ".", f"nothing here can tell whether this is right: {text}"


class Reader:
    """Somebody who types one command after the other in one folder."""

    def __init__(self, folder: Path, downloads: Path) -> None:
        self.folder, self.downloads = folder, downloads
        self.shimmed = stand_ins.programs(folder / "bin")

    def follow(self, page: Sequence[Command]) -> None:
        """Type the commands; those of one block print together what stands behind it."""
        for said, group in groupby(page, lambda command: command.said):
            block = list(group)
            printed = "".join(map(self.type, block))
            if all(map(always_prints_the_same, block)):
                missing = [line for line in lines(said) if not shown(line, printed)]
                assert not missing, f"{block[0]}\ndoes not print {missing}\n{printed}"

    def type(self, command: Command) -> str:
        """Run a command, if it can be run here; what it prints."""
        if why_only_parsed(command.text) is not None:
            check_words(command.text)
            return ""
        words = shlex.split(command.text)
        printed = io.StringIO()
        short = False
        for call in [words] if words[0] in MAIN else self.shell(command, printed):
            code, shortened = self.call(call, printed)
            short |= shortened
            # how a shortened training, or a random model, does decides between 0 and 1
            loose = command.exits < 2 and (short or about_a_stand_in(call))
            allowed = {0, 1} if loose else {command.exits}
            assert code in allowed, f"{command}\nexits with {code}\n{printed.getvalue()}"
        if not short and not about_a_stand_in(words):
            missing = codes(command.said) - codes(printed.getvalue())
            assert not missing, f"{command}\ndoes not print {missing}\n{printed.getvalue()}"
        return printed.getvalue()

    def shell(self, command: Command, printed: io.StringIO) -> list[list[str]]:
        """Run a line by bash; returns the calls of our own programs in it."""
        record = self.folder / "calls"
        record.unlink(missing_ok=True)
        path = f"{self.shimmed}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command.text], cwd=self.folder, check=False, capture_output=True,
            text=True, env=os.environ | {"PATH": path, "CALLS": str(record)},
        )  # fmt: skip
        printed.write(done.stdout + done.stderr)
        assert done.returncode == command.exits or stand_ins.calls(record), (
            f"{command}\nexits with {done.returncode}\n{printed.getvalue()}"
        )
        return stand_ins.calls(record)

    def call(self, words: list[str], printed: io.StringIO) -> tuple[int, bool]:
        """Run one of our programs in this process; returns its exit code, and whether cut short."""
        if words[0] == "hf":
            self.download(words[1:])
            return 0, False
        name, *arguments = [stand_ins.WORDS.get(word, word) for word in words]
        short = name == "safe-train" and arguments[0] in CONFIGS and "--help" not in arguments
        if short and "--resume" not in arguments:
            arguments += stand_ins.SHORT
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                return MAIN[name](arguments), short
            except SystemExit as end:  # --help
                return int(end.code or 0), short

    def download(self, words: list[str]) -> None:
        parser = argparse.ArgumentParser(prog="hf")
        parser.add_argument("verb", choices=["download"])
        parser.add_argument("name")
        parser.add_argument("file", nargs="?")
        parser.add_argument("--local-dir", type=Path, required=True)
        asked = parser.parse_args(words)
        known = stand_ins.downloads(self.downloads / "llava", self.downloads / "clap")
        known[asked.name](self.folder / asked.local_dir)


def about_a_stand_in(words: list[str]) -> bool:
    return any(word.startswith(("runs/", "models/")) for word in words)


def always_prints_the_same(command: Command) -> bool:
    """Whether what it prints does not depend on a machine, a training or a stand-in."""
    words = shlex.split(command.text)
    same = words[1] in ("plan", "explain", "list") or command.exits == 2
    return words[0] in MAIN and same and not about_a_stand_in(words)


def lines(text: str) -> list[str]:
    """The lines of what a page shows, white space as one; ``...`` stands for anything."""
    found = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in found if line.strip(". ")]


def shown(line: str, printed: str) -> bool:
    """Whether ``line`` was printed, wherever the terminal broke it."""
    parts = [re.escape(part.strip()) for part in line.split("...")]
    return re.search(".*".join(parts), " ".join(printed.split())) is not None


def codes(text: str) -> set[str]:
    return set(re.findall(r"\bSP\d{3}\b", text))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA and a CLAP of the classes that are published, tiny and random; and clips."""
    from tests.docs.tiny import save_clap, save_llava

    root = tmp_path_factory.mktemp("downloads")
    save_llava(root / "llava")
    save_clap(root / "clap")
    materialize_synthetic(root / "clips", **stand_ins.CLIPS)
    return root


@pytest.fixture
def someone(
    downloads: Path, tmp_path: Path, in_small_world: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    """A reader in a folder of their own, without network, a browser or a GPU."""
    stand_ins.reader(tmp_path, downloads / "clips", downloads / "llava")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(webbrowser, "open", lambda _: True)
    monkeypatch.setattr(experiment, "data_root", stand_ins.data_root(downloads / "clips"))
    yield Reader(tmp_path, downloads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p not in stand_ins.ELSEWHERE])
def test_the_commands_of_the_page_run(
    page: str, someone: Reader, request: pytest.FixtureRequest
) -> None:
    if page == "README.md":  # speaks of a run that `make demo` has left
        shutil.copytree(request.getfixturevalue("tiny_run").folder, "runs/tiny")
        Path("runs/latest").symlink_to("tiny")
    someone.follow(commands(page))


@pytest.mark.parametrize("page", stand_ins.ELSEWHERE)
def test_another_test_runs_this_page(page: str) -> None:
    test = (ROOT / stand_ins.ELSEWHERE[page]).read_text(encoding="utf-8")
    assert Path(page).name in test
    for command in commands(page):
        check_words(command.text)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_mentions_can_be_typed(page: str) -> None:
    """Commands in tables and sentences, with words in capitals for what the reader has."""
    for text in mentioned(page):
        text = text.replace("...", "")
        words = shlex.split(text)
        if words[1] == "COMMAND":
            continue
        only_named = all(re.fullmatch(r"[a-z0-9-]+", word) for word in words)
        check_words(f"{text} --help" if only_named and words[0] != "make" else text)


def test_remedies_can_be_typed() -> None:
    found = {text for page in FINDINGS for text in mentioned(page)}
    assert len(found) > 5
    for text in found:
        check_words(text if " " in text.partition(" ")[2] else f"{text} --help")


@pytest.mark.parametrize("page", PAGES)
def test_every_finding_that_a_page_names_exists(page: str) -> None:
    assert codes((ROOT / page).read_text(encoding="utf-8")) <= set(CATALOGUE) | {"SP000"}


@pytest.mark.parametrize("text", [
    "safe-train phase1 --epochz 3", "safe-probe chek runs/latest", "make demos",
    "pip install 'safe-probe[dcos]'", "torchrun --nproc_per_node 2 -m safe.cli phase9",
])  # fmt: skip
def test_a_typo_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        check_words(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("safe-train data check nowhere", ""),
        ("safe-probe list --thresholdz", ""),
        ("frobnicate runs", ""),
        ("bash scripts/phase1_training.sh --epochz 3", ""),
        ("safe-probe explain SP104", "SP105 warning"),
        ("safe-train plan phase1 --gpu-memory 40", "memory 9.99 GB"),
    ],
)
def test_a_command_that_does_something_else_is_noticed(
    text: str, said: str, someone: Reader
) -> None:
    with pytest.raises(AssertionError):
        someone.follow([Command("page.md", 1, text, 0, said)])

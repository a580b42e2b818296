"""report, watch, compare, criteria and checklist, from their arguments to their exit codes."""

import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from configs.model_configs import get_config
from configs.schema import RunConfig
from safe_probe.cli import main


def evaluation(score: float, shuffled: float) -> dict[str, Any]:
    def scores(mean: float) -> dict[str, Any]:
        per_clip = {f"clip-{i}": mean + i % 3 for i in range(30)}
        return {
            "cider": mean, "cider_interval": [mean - 3, mean + 3], "per_clip_cider": per_clip,
            "tokenizer": "ptb", "n_clips": 30,
        }  # fmt: skip

    gap = score - shuffled
    return {
        "split": "test",
        "scores": scores(score),
        "controls": {"another clip's audio": scores(shuffled)},
        "floors": {"commonest caption": scores(5.0)},
        "versus_shuffled": {"mean": gap, "low": gap - 2, "high": gap + 2},
    }


def write(folder: Path, score: float, shuffled: float = 5.0, steps: int = 20) -> Path:
    folder.mkdir(parents=True)
    config: RunConfig = get_config("demo")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    epochs = config.optim.epochs
    rows = [
        {"kind": "step", "step": i, "epoch": epochs * i / 20, "loss": 4 - i / 10, "skipped": False}
        for i in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluation.json").write_text(json.dumps(evaluation(score, shuffled)))
    return folder


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    return write(tmp_path / "blocked", 40, shuffled=41)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """Its score is fine; whether the audio changes the output was not measured."""
    return write(tmp_path / "partial", 40)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_report_says_what_to_do_next(
    blocked: Path, partial: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "report", blocked)
    assert code == 1 and "✘ BLOCKED  blocked" in out and err == ""
    code, out, _ = run(capsys, "report", partial)
    assert code == 0 and "~ PARTIAL  partial" in out
    assert out.splitlines()[-1] == f"safe-probe check {partial} --output {partial}/check"
    assert "\x1b" not in out


def test_report_formats(blocked: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "report", blocked, "--json")
    assert code == 1 and json.loads(out)["verdict"]["decision"] == "BLOCKED"
    _, out, _ = run(capsys, "report", blocked, "--quiet")
    assert out.startswith("BLOCKED: ") and out.count("\n") == 1
    _, out, _ = run(capsys, "report", blocked, "--markdown")
    assert out.startswith("## ✘ BLOCKED: blocked\n") and out.count("\n| ") > 20
    file = tmp_path / "junit.xml"
    code, out, err = run(capsys, "report", blocked, "--quiet", "--junit", file)
    assert code == 1 and err == f"wrote {file}\n" and out.startswith("BLOCKED")
    assert int(ElementTree.parse(file).getroot().attrib["failures"]) >= 2


def test_report_as_html(
    blocked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or False)
    file = blocked / "report.html"
    code, _, err = run(capsys, "report", blocked, "--quiet", "--html")
    assert code == 1 and err == f"wrote {file}\n" and opened == []
    assert "BLOCKED" in file.read_text(encoding="utf-8")
    _, _, err = run(capsys, "report", blocked, "--quiet", "--open")
    assert opened == [file.as_uri()] and "open the file yourself" in err


def test_a_checkpoint_is_measured_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write(tmp_path / "my runs" / "x", 40) / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    code, out, _ = run(capsys, "report", checkpoint)
    assert code == 1 and "checkpoint of step 10" in out
    assert out.splitlines()[-1] == f"safe-train evaluate '{checkpoint}'"
    folder = checkpoint.parents[1]
    kept = f"'{folder}/check/step-00000010'"
    assert f"    safe-probe check '{checkpoint}' --output {kept}\n" in out
    assert f"    safe-probe report '{checkpoint}' --baseline BASELINE_RUN\n" in out


def test_report_against_a_baseline(
    blocked: Path, partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, alone, _ = run(capsys, "report", partial, "--json")
    _, both, _ = run(capsys, "report", partial, "--json", "--baseline", blocked)
    evidence = [
        next(c["evidence"] for c in json.loads(text)["criteria"] if c["name"] == "baseline")
        for text in (alone, both)
    ]
    assert evidence[0] != evidence[1] and "18" in evidence[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "no/such/run"], "is no run: it has no config.json"),
        (["watch", "no/such/run"], "is no run"),
        (["compare", "RUN"], "a comparison needs at least two runs, got 1"),
        (["compare", "RUN", "nowhere"], "is no run"),
        (["report", "RUN", "--quiet", "--junit", "no/such/folder/x.xml"], "cannot be written"),
        (["report", "RUN", "--baseline", "nowhere"], "is no run"),
        (["checklist", "nowhere"], "is no run"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, blocked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *(str(blocked) if a == "RUN" else a for a in arguments))
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1 and "Traceback" not in err


def test_formats_exclude_each_other(blocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(blocked), "--json", "--quiet"])
    assert stopped.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_a_damaged_config_is_named(blocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (blocked / "config.json").write_text("{")
    code, _, err = run(capsys, "report", blocked)
    assert code == 2 and "config.json cannot be read" in err


def test_compare(
    blocked: Path, partial: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(capsys, "compare", blocked, partial)
    assert code == 0 and "B - A = +0.0 [+0.0, +0.0] over 30 clips: no clear difference" in out
    assert "gone in B  SP701 error" in out
    _, out, _ = run(capsys, "compare", blocked, partial, "--json")
    assert [r["name"] for r in json.loads(out)["runs"]] == ["blocked", "partial"]
    file = tmp_path / "pages" / "both.html"
    code, _, err = run(capsys, "compare", blocked, partial, "--html", file)
    assert code == 0 and err == f"wrote {file}\n" and file.exists()


def test_criteria_and_checklist(blocked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "criteria")
    assert code == 0 and "Final CIDEr *" in out and "> 30 (partial from 25 on)" in out
    code, out, _ = run(capsys, "checklist")
    assert code == 0 and "[x]" in out and "no run to look at" in out
    code, out, _ = run(capsys, "checklist", blocked)
    assert code == 0 and "40.0" in out


def test_watch_prints_one_page_when_piped(
    partial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["watch", partial], ["watch", partial, "--once"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0 and "partial  finished" in out and "step 20 of 20" in out
        assert "\x1b" not in out


def test_an_old_terminal_gets_what_it_can_show(partial: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    code = "import sys; from safe_probe.cli import main; sys.exit(main(sys.argv[1:]))"
    for command in ("report", "watch"):
        done = subprocess.run(
            [sys.executable, "-c", code, command, str(partial)],
            env=environment, capture_output=True, check=True, text=True,
        )  # fmt: skip
        assert "partial" in done.stdout and done.stdout.isascii()


@pytest.mark.parametrize("option", ["--json", "--quiet", "--markdown", None])
def test_the_verdict_stands_when_the_reader_leaves(option: str | None, blocked: Path) -> None:
    code = "import sys; from safe_probe.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(blocked), *([option] if option else [])]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


class Terminal:
    """A command on a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments: str) -> None:
        code = "import sys; from safe_probe.cli import main; sys.exit(main(sys.argv[1:]))"
        environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def read_until(self, part: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while part not in self.text:
            assert time.monotonic() < end, self.text
            try:
                self.text += os.read(self.ours, 65536).decode()
            except OSError:  # the other side has gone
                break

    def finish(self) -> int:
        code = self.process.wait(20)
        self.read_until("\0 the end")
        os.close(self.ours)
        return code


def test_watch_follows_a_run_to_its_end(tmp_path: Path) -> None:
    young = write(tmp_path / "young", 40, steps=10)
    (young / "evaluation.json").unlink()
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (young / "run.lock").write_text(json.dumps(owner))
    terminal = Terminal("watch", str(young))
    terminal.read_until("step 10 of 20")
    with (young / "metrics.jsonl").open("a") as file:
        row = {"kind": "step", "step": 11, "epoch": 11, "loss": 1.0, "skipped": False}
        file.write(json.dumps(row) + "\n")
    terminal.read_until("step 11")
    (young / "run.lock").write_text("")
    terminal.read_until("stopped")
    assert terminal.finish() == 0
    assert "\x1b[?1049h" not in terminal.text, "no alternate screen"
    assert terminal.text.count("\x1b[?25h") == terminal.text.count("\x1b[?25l"), "cursor is back"


def test_ctrl_c_leaves_quietly(tmp_path: Path) -> None:
    young = write(tmp_path / "young", 40, steps=10)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    (young / "run.lock").write_text(json.dumps(owner))
    terminal = Terminal("watch", str(young))
    terminal.read_until("step 10 of 20")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 0
    assert "Traceback" not in terminal.text and "interrupted" not in terminal.text


def test_every_command_and_the_code_of_the_document_work(
    tmp_path: Path, repo_root: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path / "runs" / "latest", 40)
    write(tmp_path / "runs" / "baseline", 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda _url: True)
    text = (repo_root / "docs" / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) > 12
    for name, *arguments in commands:
        code, out, _ = run(capsys, *arguments)
        assert (name, code) == ("safe-probe", 0) and out, arguments
    for name in ("runs/latest/report.html", "both.html", "report.xml"):
        assert (tmp_path / name).exists(), name
    (python,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(python, names)
    assert len(names["steps"]) == 20 and len(names["records"]) > 5
    assert capsys.readouterr().out.startswith("PARTIAL safe-probe check ")


def test_report_is_quick(blocked: Path) -> None:
    code = (
        "import sys, time\nfrom safe_probe.cli import main\n"
        "main(['report', sys.argv[1], '--quiet'])\n"
        "print(time.process_time(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(blocked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stderr) < 1.2  # measured 0.24; torch alone costs 1.6

"""The files of docs/extend.md, installed as a package and used by name."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from probes.diagnosis import diagnose
from probes.findings.judge import judge
from probes.findings.settings import Settings
from safe import cli as train_cli
from safe.available import absolute_paths
from safe.models.backbones import load_backbone, weights_available
from safe_probe import cli as probe_cli
from tests.packages import install, kinds_of_sounds, small_model

pytestmark = pytest.mark.usefixtures("in_small_world")


@pytest.fixture(scope="module")
def page(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where the page's package is installed; on sys.path while this module runs."""
    text = (repo_root / "docs" / "extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    files = dict(blocks)
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    assert len(files) == len(project["entry-points"]) == 5
    place = tmp_path_factory.mktemp("site")
    install(place, project["name"], files, project["entry-points"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        yield place
    for file in files:
        sys.modules.pop(file.removesuffix(".py"), None)


def test_the_page_is_short(repo_root: Path) -> None:
    assert len((repo_root / "docs" / "extend.md").read_text().splitlines()) <= 200


def test_nothing_is_imported_until_it_is_asked_for(page: Path) -> None:
    """Processor time of the whole process, measured 0.14 s."""
    code = (
        "import sys, time\nfrom safe_probe.cli import main\n"
        "def added(): return {m for m in sys.modules if m.startswith('acme')}\n"
        "assert main(['explain', 'SP204']) == 0 and main(['list', 'SP2']) == 0\n"
        "try:\n    main(['check', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not added(), added()\n"
        "assert main(['list']) == 0 and main(['explain', 'acme101']) == 0\n"
        "assert added() == {'acme_finding'}, added()\n"
        "assert not {'torch', 'transformers', 'pandas', 'peft'} & set(sys.modules)\n"
        "assert time.process_time() < 0.5, time.process_time()\n"
    )
    paths = os.pathsep.join([str(page), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ACME101  warning  All clips have nearly the same tokens" in done.stdout
    assert "ACME101: All clips have nearly the same tokens\n\nSeverity\n  warning" in done.stdout


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds_of_sounds(tmp_path_factory.mktemp("data") / "kinds")


def test_all_five_in_one_run(
    page: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "runs"
    assert train_cli.main(["data", "prepare", str(sounds), str(data)]) == 0
    assert "Acme's kinds" in capsys.readouterr().out
    assert (data / "train.csv").read_text().count("A sound of dog barking") == 2
    named = ["--backbone", "acme-lm", "--audio-encoder", "acme-spectrum", "--data", str(data)]
    assert train_cli.main(["plan", "demo", *named[:2]]) == 0
    assert "prompt: 'Sound: '" in capsys.readouterr().out
    options = [option for word in (
        "optim.batch_size=3", "optim.epochs=1", "data.audio=mean", "evaluation.max_new_tokens=3",
        "evaluation.bootstrap=10",
    ) for option in ("--set", word)]  # fmt: skip
    how = ["--device", "cpu", "--probe-every", "0", "--output", str(out), "--name", "run"]
    assert train_cli.main(["demo", *named, *options, *how]) in (0, 1)
    assert "heard by acme-spectrum (acme-spectrum@1+center)" in capsys.readouterr().out
    small = ["--batches", "2", "--batch-size", "3", "--device", "cpu"]
    probe_cli.main(["check", str(out / "run"), "--select", "ACME", *small])
    shown = capsys.readouterr().out
    assert "acme_alike" in shown and "cosine_between_clips" in shown
    # of a model that is given one embedding for all clips
    assert "ACME101 warning  projector: All clips have nearly the same tokens" in shown


def test_probe_and_finding_from_python(page: Path) -> None:
    model, batch = small_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = diagnose(model, [batch], probes=["acme_alike"])
    value = found.log.value(probe="acme_alike", statistic="cosine_between_clips")
    with torch.no_grad():
        tokens = model.projector(batch["audio"]).flatten(1)
    pairs = torch.nn.functional.cosine_similarity(tokens[[0, 0, 1]], tokens[[1, 2, 2]])
    assert value == pytest.approx(pairs.mean().item(), abs=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    alike = batch | {"audio": batch["audio"][:1].expand(3, -1)}
    codes = [f.code for f in diagnose(model, [alike], probes=["acme_alike"]).findings]
    assert codes == ["ACME101"]
    assert not judge(found.log, Settings(ignore=("ACME",)))
    assert "acme_alike" in diagnose(model, [batch]).records["probe"].unique()


def test_names_are_meant_as_names(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_tiny_config: Any
) -> None:
    """Also where a folder is called so; and what follows an encoder's colon is a path."""
    (tmp_path / "acme-lm").mkdir()
    (tmp_path / "w.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert weights_available("acme-lm")
    config = make_tiny_config(
        tmp_path, model__backbone="acme-lm", model__audio_encoder="acme-spectrum:w.pt"
    )
    model = absolute_paths(config).model
    assert model.backbone == "acme-lm"
    assert model.audio_encoder == f"acme-spectrum:{tmp_path / 'w.pt'}"
    assert load_backbone("acme-lm", dtype="float32").identity.startswith("acme-lm@")

"""``safe-probe`` from its arguments to its exit code, on the embedded model and tiny data."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probes.findings import CATALOGUE
from safe_probe.cli import main


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safe.data.synthetic import materialize_synthetic

    return materialize_synthetic(tmp_path_factory.mktemp("clips") / "data", train=8, val=2, test=2)


@pytest.fixture
def run(
    clips: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """run(*arguments) -> (exit code, output, errors), in a folder without settings."""
    cache = tmp_path_factory.getbasetemp() / "safe-probe-cache"
    monkeypatch.setenv("SAFE_PROBE_CACHE", str(cache))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))

    def call(*arguments: str, data: bool = True) -> tuple[int, str, str]:
        small = ["--data", str(clips), "--batch-size", "4", "--device", "cpu"] if data else []
        code = main([*arguments, *small])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_help_list_and_explain_need_no_torch() -> None:
    code = (
        "import sys\nfrom safe_probe.cli import main\n"
        "assert main(['list']) == 0 and main(['explain', 'SP204']) == 0\n"
        "assert main(['completion', 'bash']) == 0\n"
        "try:\n    main(['check', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_list_and_explain(run: Any) -> None:
    code, out, _ = run("list", data=False)
    assert code == 0 and all(finding in out for finding in CATALOGUE)
    code, out, _ = run("list", "sp2", data=False)
    assert code == 0 and "SP201" in out and "SP101" not in out
    assert "loud = 1 (ratio)" in run("list", "--thresholds", data=False)[1]
    assert "The gate is nearly closed" in run("explain", "sp204", data=False)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "SP2O4"], "unknown finding 'SP2O4'; did you mean 'SP204'?"),
        (["check"], "give either a CHECKPOINT (or run folder) or --config NAME"),
        (["check", "--config", "phase"], "unknown config 'phase'; did you mean 'phase2'?"),
        (["check", "--config", "demo", "--json", "--csv"], "--json and --csv both print"),
        (["check", "--config", "demo", "--ignore", "SP999"], "ignore: unknown finding 'SP999'"),
        (["check", "--config", "demo", "--fail-on", "bad"], "unknown value of fail-on 'bad'"),
        (["check", "no/such/run"], "is no run folder"),
        (["check", "--config", "demo", "--set", "model.projector.scal=2"], "unknown key"),
        (["params"], "give --config NAME"),
        (["list", "SP9"], "unknown finding 'SP9'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    run: Any, arguments: list[str], message: str
) -> None:
    code, out, err = run(*arguments, data=False)
    assert code == 2 and out == ""
    lines = err.strip().splitlines()
    assert message in lines[-1] and "Traceback" not in err


def test_params_prints_the_true_numbers_and_checks_the_claims(run: Any) -> None:
    code, out, _ = run("params", "--config", "phase1", "--json", data=False)
    assert code == 0
    data = json.loads(out)
    values = {(r["probe"], r["component"], r["statistic"]): r["value"] for r in data["records"]}
    assert values["parameters", "projector", "total"] == 168_461_312 + 2 * 512  # and its LayerNorm
    assert values["parameters", "fusion", "trainable"] == 10_485_760
    assert values["parameters", "gate", "trainable"] == 4
    assert values["parameters", "model", "frozen"] == 13_351_494_656
    assert values["claims", "model", "stated"] == 380e6
    codes = {f["code"]: f for f in data["findings"]}
    assert "stated 380,000,000, measured 178,948,100" in codes["SP506"]["measured"]
    parts = {part["name"]: part["bytes"] for part in data["subject"]["memory"]}
    assert parts["gradients"] == 4 * 178_948_100 and parts["optimizer"] == 8 * 178_948_100
    assert parts["weights"] == 2 * 13_351_494_656 + 4 * 178_948_100
    assert values["parameters", "projector", "in_optimizer"] == 168_461_312 + 2 * 512
    assert values["parameters", "fusion", "in_optimizer"] == 10_485_760
    assert values["parameters", "model", "in_optimizer"] == 178_948_100
    rates = {c: values["parameters", c, "lr_max"] for c in ("projector", "fusion", "gate")}
    assert rates == {"projector": 1e-3, "fusion": 5e-4, "gate": 5e-4}  # as in the config
    assert values["parameters", "optimizer", "strangers"] == 0
    assert run("params", "--config", "phase1", "--fail-on", "warning", data=False)[0] == 1


def test_params_as_a_table(run: Any) -> None:
    _, out, _ = run("params", "--config", "phase1", data=False)
    assert "…" not in out and "12,688,184,320" in out
    assert "off by a factor of 2.12" in out and "agrees" in out and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_check_of_a_fresh_model(run: Any, tmp_path: Path) -> None:
    code, out, err = run("check", "--config", "demo", "--output", str(tmp_path / "out"))
    assert code == 0, out
    for part in (
        "data", "parameters", "magnitude", "gates", "dials", "attention", "gradients", "influence",
        "third of the caption", "parity with the bare backbone: gate:zero bit for bit", "verdict",
    ):  # fmt: skip
        assert part in out
    assert "loading backbone embedded" in err
    saved = json.loads((tmp_path / "out" / "diagnosis.json").read_text(encoding="utf-8"))
    assert saved["subject"]["config"] == "demo" and saved["not_measured"] == {}
    assert not [f for f in saved["findings"] if f["severity"] == "error"]
    assert max(map(len, out.splitlines())) <= 80


def test_a_warm_up_that_the_training_does_not_end_is_said_before(run: Any) -> None:
    key = "model.fusion.gate_warmup_steps"
    code, out, _ = run("gates", "--config", "demo", "--set", f"{key}=100000")
    assert code == 0 and "SP202 warning" in out and "at the last step" in out
    code, out, _ = run("gates", "--config", "demo", "--set", f"{key}=2")
    assert code == 0 and "SP202" not in out


def test_check_fails_on_a_broken_setting(run: Any) -> None:
    broken = ("gates", "--config", "demo", "--set", "model.fusion.gate_init=0")
    code, out, _ = run(*broken, "--set", "model.projector.scale=1e-30", "--json")
    assert code == 0, "a closed gate is a cold start"
    drowned = ("magnitude", "--config", "demo", "--set", "model.projector.scale=5000")
    code, out, _ = run(*drowned, "--json")
    found = {f["code"] for f in json.loads(out)["findings"]}
    assert (code, found & {"SP106"}) == (1, {"SP106"})
    assert run(*drowned, "--ignore", "SP1")[0] == 0
    assert run(*drowned, "--fail-on", "never")[0] == 0


def test_settings_file_and_csv(run: Any, tmp_path: Path) -> None:
    settings = tmp_path / "probe.yaml"
    settings.write_text("ignore: [SP]\nfail-on: note\n")
    code, out, _ = run("magnitude", "--config", "demo", "--settings", str(settings), "--csv")
    assert code == 0
    assert out.splitlines()[0] == "step,probe,component,layer,statistic,value,unit"


def test_the_missing_pieces_are_said(run: Any) -> None:
    _, _, err = run("magnitude", "--config", "phase1")
    assert "the embedded tiny one instead of llava-hf/llava-1.5-13b-hf" in err
    assert "same relative depth" in err


def test_vision_is_the_backbones_own(run: Any) -> None:
    code, out, _ = run("magnitude", "--config", "demo", "--signal", "vision", "--json")
    assert code == 0
    data = json.loads(out)
    ratios = [r for r in data["records"] if r["statistic"] == "l2_to_text"]
    assert {r["component"] for r in ratios} == {"signal"} and len(ratios) == 11
    _, out, _ = run("magnitude", "--config", "demo", "--signal", "vision")
    assert "the vision tower of embedded is tiny and random" in out


def test_vision_stands_beside_audio(run: Any) -> None:
    _, out, _ = run("magnitude", "--config", "demo")
    assert "audio  vision" in out and "x text here, audio " in out and "no evidence" in out
    assert max(map(len, out.splitlines())) <= 80
    data = json.loads(run("magnitude", "--config", "demo", "--json")[1])
    vision = data["subject"]["vision"]
    assert vision["trained"] is False and vision["l2_to_text"] > 0
    assert list(vision["layers"]) == [str(i) for i in range(10)]
    assert not [r for r in data["records"] if r["component"] == "signal"], "records are audio's"


def test_influence_and_gradflow_tables(run: Any) -> None:
    code, out, _ = run("influence", "--config", "demo")
    assert code == 0 and "signal:swapped" in out and "without layer" in out
    assert "third of the caption" in out and "attention over audio tokens" in out
    code, out, _ = run("gates", "--config", "demo")
    assert code == 0 and "contribution 1.0" in out and "logits changed" in out
    code, out, _ = run("gradflow", "--config", "demo")
    assert code == 0 and "finite" in out and "frozen" in out


def test_calibrate_writes_a_config_that_check_accepts(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "calibrated.yaml"
    code, out, _ = run("calibrate", "--config", "demo", "--output", str(file))
    assert code in (0, 1) and "--set model.projector.scale=" in out
    assert f"written to {file}" in "".join(out.split("\n"))
    from configs.overrides import load_yaml

    base, values = load_yaml(file)
    assert base == "demo"
    assert set(values) == {"model.projector.scale", "model.fusion.gate_init"}


def test_completion_knows_commands_and_options(run: Any) -> None:
    for shell in ("bash", "zsh"):
        code, out, _ = run("completion", shell, data=False)
        assert code == 0 and "calibrate" in out and "--fail-on" in out and "SP204" in out
    subprocess.run(["bash", "-n"], input=run("completion", "bash", data=False)[1], text=True,
                   check=True)  # fmt: skip

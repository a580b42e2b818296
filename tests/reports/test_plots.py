"""The pictures: what they show is what was measured, whatever was measured."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes

from configs.claims import EXPECTED_CIDER
from probes.record import Record
from reports.pictures import BAND, THRESHOLDS, plot_sections
from reports.plots import curves, gradients, influence, layers
from reports.plots.palette import PALETTE, SERIES
from reports.plots.plot import MOST_ROWS, Plot, Table, drawable, picture
from reports.plots.thin import smooth, thin
from reports.run import read_run

Factory = Callable[..., Path]
Rows = dict[str, Callable[..., Any]]
floats = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(floats, max_size=300), st.integers(4, 60))
def test_thin_keeps_extremes_and_ends(values: list[float], most: int) -> None:
    array = np.array(values, dtype=float)
    kept = thin(array, most)
    assert len(kept) <= max(most, 0)
    assert list(kept) == sorted(set(kept))
    finite = array[np.isfinite(array)]
    if len(array):
        assert {0, len(array) - 1} <= set(kept)
    if len(finite):
        shown = array[kept]
        assert shown[np.isfinite(shown)].max() == finite.max()
        assert shown[np.isfinite(shown)].min() == finite.min()


def test_thin_keeps_every_spike_of_a_long_curve() -> None:
    values = np.zeros(100_000)
    spikes = np.arange(500, 100_000, 997)
    values[spikes] = 1.0
    assert values[thin(values)].sum() == len(spikes)


@given(st.lists(floats, max_size=40), st.integers(1, 9))
def test_smooth_is_the_mean_of_the_neighbours(values: list[float], window: int) -> None:
    array = np.clip(np.array(values, dtype=float), -1e6, 1e6)
    array[np.array([math.isinf(v) for v in values], dtype=bool)] = np.inf
    found = smooth(array, window)
    for i in range(len(array)):
        near = array[max(0, i - window // 2) : i + window // 2 + 1]
        near = near[np.isfinite(near)]
        expected = near.mean() if len(near) else np.nan
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-6)


def shown(plot: Plot) -> list[str]:
    """Texts that are drawn."""
    root = ET.fromstring(plot.svg)
    return ["".join(e.itertext()) for e in root.iter("text")]


def test_tables_hold_what_was_measured(make_whole_run: Factory) -> None:
    run = read_run(make_whole_run())
    plots = {plot.key: plot for section in plot_sections(run) for plot in section.plots}
    assert plots["magnitude"].rows[1] == ("text", "layer 2", "210", "300", "600")
    assert plots["contribution"].rows[0] == ("layer 2", "0.2", "0.1", "0.2", "0.4")
    assert plots["controls"].rows[0] == ("another clip's audio", "0.5", "0.02", "0.25")
    assert plots["influence"].rows[1] == ("without layer 4", "0.125", "0.01", "0.125")
    assert plots["components"].rows[0] == ("projector", "4", "finite")
    assert plots["cider"].rows[-1] == ("final", "3", "41", "36", "46")
    assert plots["loss"].rows[0] == ("1", "5.87", "5.87")
    assert plots["heat"].columns == ("", "all", "projector", "adapter")
    assert len(plots["gates"].rows) == 120
    assert "another clip's audio" in shown(plots["controls"])
    assert "expected" in shown(plots["cider"])


def test_expected_band_is_the_plans(make_whole_run: Factory, run_rows: Rows) -> None:
    assert tuple((float(k), *v) for k, v in EXPECTED_CIDER.items()) == BAND
    run = read_run(make_whole_run(config={"optim.epochs": 10}))
    plot = curves.cider(run, BAND, THRESHOLDS)
    assert plot is not None
    assert "10 to 15 at epoch 1, 22 to 28 at epoch 5, 28 to 35 at epoch 10" in plot.about
    assert {"verified above 30", "partial from 25"} <= set(shown(plot))


def test_heat_has_the_probes_rows_when_it_looked_often(
    make_whole_run: Factory, run_rows: Rows
) -> None:
    records = [
        Record(step, "gradflow", part, layer, "norm", value, "L2")
        for step in (0, 10, 20, 30)
        for part, layer, value in (
            ("projector", None, 1.0 + step), ("gate", 4, 0.0), ("gate", 2, math.nan),
            ("projector:weight", None, 9.0), ("model", None, 9.0),
        )
    ]  # fmt: skip
    plot = gradients.heat(read_run(make_whole_run(records=records)))
    assert plot is not None
    names = ("all", "projector", "adapter", "projector (probe)", "gate @ 2 (probe)")
    assert plot.columns == ("", *names, "gate @ 4 (probe)")
    assert [row[0] for row in plot.rows] == [f"up to step {s}" for s in (0, 10, 20, 30)]
    assert [row[4] for row in plot.rows] == ["1", "11", "21", "31"]
    assert [row[5] for row in plot.rows] == ["infinity"] * 4
    assert [row[6] for row in plot.rows] == ["0"] * 4
    assert {"exactly zero", "not finite"} <= set(shown(plot))


def test_largest_norm_of_each_stretch(make_run: Factory, run_rows: Rows) -> None:
    metrics = run_rows["steps"](1000)
    metrics[499]["grad_norm/projector"] = 88.0
    plot = gradients.heat(read_run(make_run(metrics=metrics)))
    assert plot is not None
    assert len(plot.rows) == gradients.MOST_COLUMNS
    assert [row[2] for row in plot.rows].count("88") == 1


def test_long_tables_are_thinned_but_keep_the_spike(make_run: Factory, run_rows: Rows) -> None:
    metrics = run_rows["steps"](5000)
    metrics[2500]["loss"] = 77.0
    plot = curves.loss(read_run(make_run(metrics=metrics)))
    assert plot is not None
    assert len(plot.rows) <= MOST_ROWS
    assert ("2,501", "77") in [row[:2] for row in plot.rows]


def test_closed_gates_and_silence_are_seen(make_whole_run: Factory) -> None:
    run = read_run(make_whole_run(gate=0.0, contribution=0.0))
    plot = layers.contribution(run.facts, run.start, (0.1, 0.3))
    assert plot is not None
    assert "0 or not finite" in shown(plot)


def test_nothing_measured_nothing_drawn(make_run: Factory) -> None:
    run = read_run(make_run("empty"))
    facts = run.facts
    assert [curves.loss(run), curves.cider(run, BAND, THRESHOLDS), curves.gates(run)] == [None] * 3
    assert [layers.magnitude(facts), layers.contribution(facts, facts, (0.1, 0.3))] == [None] * 2
    assert [influence.controls(facts), influence.layers(facts)] == [None] * 2
    assert [gradients.heat(run), gradients.components(run)] == [None] * 2
    assert all(section.missing and not section.plots for section in plot_sections(run))


def test_gates_of_the_probe_when_the_steps_have_none(
    make_whole_run: Factory, run_rows: Rows
) -> None:
    metrics = [
        {k: v for k, v in row.items() if not k.startswith("gate/")} for row in run_rows["steps"]()
    ]
    plot = curves.gates(read_run(make_whole_run(metrics=metrics)))
    assert plot is not None
    assert ("layer 8", "30", "0.3") in plot.rows


@pytest.mark.parametrize("value", ["text", None, True, [1], {"a": 1}, "nan", "1e999", ""])
def test_fields_of_the_wrong_kind(make_run: Factory, run_rows: Rows, value: object) -> None:
    metrics = run_rows["steps"]()
    for row in metrics[::2]:
        row |= {"loss": value, "gate/2": value, "grad_norm/adapter": value}
    run = read_run(make_run(metrics=metrics))
    plots = [curves.loss(run), curves.gates(run), gradients.heat(run)]
    assert all(plot is not None for plot in plots)


@settings(max_examples=25)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_name_can_be_drawn(title: str, name: str) -> None:
    def draw(axes: Axes) -> None:
        from reports.plots.plot import label, legend

        axes.plot([0, 1], [0, 1], label=label(name) or "-")
        legend(axes)

    plot = picture("k", title, name, Table(("a",), [(name,)]), draw, height=1.5)
    root = ET.fromstring(plot.svg)
    assert root.get("aria-labelledby") == "k-title k-about"
    assert not [e for e in root.iter() if "style" in e.attrib]


def test_ids_are_prefixed_and_all_used(make_whole_run: Factory) -> None:
    for section in plot_sections(read_run(make_whole_run())):
        for plot in section.plots:
            root = ET.fromstring(plot.svg)
            ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
            assert len(set(ids)) == len(ids)
            assert all(name.startswith(f"{plot.key}-") for name in ids)
            uses = [v for e in root.iter() for k, v in e.attrib.items() if k == "href"]
            assert {use[1:] for use in uses} <= set(ids)


def test_the_callers_settings_and_pictures_are_left_alone(make_whole_run: Factory) -> None:
    with mpl.rc_context({"font.size": 33.0, "svg.fonttype": "path", "lines.linewidth": 7.0}):
        before = dict(mpl.rcParams)
        run = read_run(make_whole_run())
        mine = curves.loss(run)
        assert dict(mpl.rcParams) == before
    assert mine == curves.loss(run)  # and they do not change ours
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_drawable() -> None:
    values = [1.0, -1.0, 0.0, math.nan, math.inf, 1e200, 1e-200]
    np.testing.assert_equal(drawable(values), [1.0, -1.0, 0.0, *[math.nan] * 3, 1e-200])
    np.testing.assert_equal(drawable(values, positive=True), [1.0, *[math.nan] * 6])


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(a: str, b: str) -> float:
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", [n for n in PALETTE if n != "faint"])
def test_colours_stand_out_on_both_papers(name: str) -> None:
    """WCAG 1.4.11: 3 for pictures, 4.5 for text."""
    least = 4.5 if name in ("ink", "grey") else 3.0
    assert _contrast(PALETTE[name].light, "#ffffff") >= least
    assert _contrast(PALETTE[name].dark, "#12161c") >= least


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
_BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("kind", _BLIND)
@pytest.mark.parametrize("paper", ["light", "dark"])
def test_first_three_colours_differ_for_the_colour_blind(kind: str, paper: str) -> None:
    """Any two are at least 0.19 apart in linear RGB; markers tell the further ones apart."""
    seen = []
    for name in [n for n, c in PALETTE.items() if c.light in SERIES[:3]]:
        colour = getattr(PALETTE[name], paper)
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
        seen.append(np.clip(np.array(_BLIND[kind]) @ parts, 0, 1))
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 0.15, gaps


def test_damaged_numbers_stand_in_the_table(make_whole_run: Factory, run_rows: Rows) -> None:
    records = [replace(r, value=math.nan) for r in run_rows["records"]()]
    run = read_run(make_whole_run(records=records))
    plot = layers.magnitude(run.facts)
    assert plot is not None
    assert plot.rows[0] == ("text", "input", "NaN", "NaN", "NaN")

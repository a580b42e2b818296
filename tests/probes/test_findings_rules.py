"""Every finding has records that fire it and records that do not."""

import math

import pytest

from probes.findings import CATALOGUE, Finding, judge
from probes.record import Record


def log(*lines: str) -> list[Record]:
    """Records from lines such as ``magnitude fusion calls@8 0``; a line ``step 200`` sets it."""
    step, found = 0, []
    for line in lines:
        if line.startswith("step "):
            step = int(line.split()[1])
            continue
        probe, component, statistic, value = line.split(" ")
        statistic, _, layer = statistic.partition("@")
        component = component.replace("~", " ")
        unit = "parameters" if probe == "claims" and component != "memory" else "u"
        found.append(
            Record(step, probe, component, int(layer) if layer else None, statistic,
                   float(value), unit)
        )  # fmt: skip
    return found


def codes(records: list[Record]) -> dict[str, Finding]:
    return {f.code: f for f in reversed(judge(records))}


def _generated(search: str, kl: float, rounding: float = 1e-12, clip: float = 0.3) -> list[str]:
    return [
        f"generation generate:{search} kl {kl}",
        f"generation generate:rounding kl {rounding}",
        f"generation generate:swapped kl {clip}",
    ]


PATH = "parameters model trainable 10"
RUN = "gates gate trainable@4 1"

CASES: dict[str, list[tuple[list[str], list[str]]]] = {
    "SP101": [(["magnitude projector nonfinite 2", "magnitude projector tokens 8"],
               ["magnitude projector nonfinite 0", "magnitude projector tokens 8"])],
    "SP102": [
        (["magnitude fusion contribution_median@4 nan"],
         ["magnitude fusion contribution_median@4 0.2"]),
        (["magnitude text nonfinite 3"], ["magnitude text nonfinite 0"]),
        (["magnitude text nonfinite@8 3"],  # SP101 comes first
         ["magnitude text nonfinite@8 3", "magnitude projector nonfinite 1",
          "magnitude projector tokens 1"]),
    ],
    "SP103": [(["magnitude projector l2_median 0"], ["magnitude projector l2_median 1"])],
    "SP104": [(["magnitude fusion branch_ratio@4 0.05"],
               ["magnitude fusion branch_ratio@4 0.05", "magnitude fusion branch_ratio@8 0.5"]),
              (["magnitude fusion branch_ratio@4 0.05"], ["magnitude fusion branch_ratio@4 0"])],
    "SP105": [(["magnitude fusion contribution_median@4 1.5"],
               ["magnitude fusion contribution_median@4 0.3"]),
              # while the outer gate warms up, as it will be
              (["magnitude fusion contribution_median@4 0.02", "gates gate outer_gate 0.0175"],
               ["magnitude fusion contribution_median@4 0.02", "gates gate outer_gate 0.25"]),
              (["magnitude fusion contribution_median@4 0.02", "gates gate outer_gate 0.0175"],
               ["magnitude fusion contribution_median@4 0.02", "gates gate outer_gate 0.0175",
                "gates gate outer_gate_at_end 0.11"])],
    "SP106": [(["magnitude fusion contribution_median@4 100"],
               ["magnitude fusion contribution_median@4 15"])],
    "SP107": [(["magnitude signal l2_to_text 0.02"], ["magnitude signal l2_to_text 37"])],
    "SP108": [(["magnitude signal l2_to_text 1000"], ["magnitude signal l2_to_text 37"])],
    "SP109": [(["magnitude projector saturated 0.4"], ["magnitude projector saturated 0.013"])],
    "SP110": [(["magnitude projector dead_units 0.7"], ["magnitude projector dead_units 0.1"])],
    "SP111": [(["magnitude projector dead_units 1"], ["magnitude projector dead_units 0.9"]),
              (["magnitude projector cosine_between_clips 0.99999"],
               ["magnitude projector cosine_between_clips 0.98"])],
    "SP112": [(["magnitude projector cosine_between_tokens 1"],
               ["magnitude projector cosine_between_tokens 0.9"])],
    "SP113": [(["magnitude text sink_inflation@12 15"], ["magnitude text sink_inflation@12 1.1"])],
    "SP114": [(["parameters model dtype.float16 5", "magnitude text max_abs@4 30000"],
               ["parameters model dtype.bfloat16 5", "magnitude text max_abs@4 30000"])],
    "SP201": [(["step 5", "gates gate outer_gate 0"], ["step 5", "gates gate outer_gate 1"])],
    "SP202": [
        (["step 100", "gates gate outer_gate 0.1", "step 900", "gates gate outer_gate 0.1"],
         ["step 100", "gates gate outer_gate 0.1", "step 900", "gates gate outer_gate 0.5"]),
        (["step 5000", "gates gate outer_gate 0.1"], ["step 50", "gates gate outer_gate 0.1"]),
        (["gates gate outer_gate_at_end 0.11"], ["gates gate outer_gate_at_end 0.6"]),
    ],
    "SP203": [([PATH, "parameters gate total 1", "gates gate trainable@4 0",
                "gates gate value@4 0"],
               [PATH, "parameters gate total 1", RUN, "gates gate value@4 0"])],
    "SP204": [(["gates gate value@4 0.001", "magnitude fusion branch_ratio@4 0.5"],
               ["gates gate value@4 0.3", "magnitude fusion branch_ratio@4 0.5"]),
              (["gates gate value@4 0.001", "magnitude fusion branch_ratio@4 0.5"],
               ["gates gate value@4 0", "magnitude fusion branch_ratio@4 0.5"]),
              # a quiet branch beside louder ones, which SP104 leaves out; enough arrives
              (["gates gate value@4 0.01", "magnitude fusion branch_ratio@4 0.07"],
               ["gates gate value@4 0.01", "magnitude fusion branch_ratio@4 3"]),
              # by the magnitudes alone, of which a warm-up is no fault of the gate
              (["magnitude fusion branch_ratio@4 0.1", "magnitude fusion gated_ratio@4 0.001"],
               ["magnitude fusion branch_ratio@4 0.1", "magnitude fusion gated_ratio@4 0.001",
                "magnitude gate outer_gate 0.02"]),
              (["magnitude fusion branch_ratio@4 0.1",
                "magnitude fusion contribution_median@4 0.001"],
               ["magnitude fusion branch_ratio@4 0.1",
                "magnitude fusion contribution_median@4 0.03"])],
    "SP205": [(["gates gate slope@4 0", "gates gate raw@4 -1", "gates gate outside_clamp@4 1", RUN],
               ["gates gate slope@4 1", "gates gate raw@4 0.3", "gates gate outside_clamp@4 0"]),
              (["gates gate slope@4 0", "gates gate gradient@4 0", "gates gate outside_clamp@4 0"],
               ["gates gate slope@4 0", "gates gate gradient@4 0", "gates gate outside_clamp@4 0",
                "magnitude fusion branch_ratio@4 0"])],
    "SP206": [(["gates gate at_edge@4 1", "gates gate value@4 1", "gates gate outside_clamp@4 0"],
               ["gates gate at_edge@4 1", "gates gate value@4 0"])],
    "SP207": [([RUN, "gates gate in_optimizer@4 0"], [RUN, "gates gate in_optimizer@4 1"])],
    "SP208": [(["gates gate weight_decay@4 0.01"], ["gates gate weight_decay@4 0"])],
    "SP209": [([RUN, "gates gate gradient_absent@4 1"], [RUN, "gates gate gradient_absent@4 0"]),
              ([RUN, "gates gate gradient_absent@4 1"],
               [RUN, "gates gate gradient_absent@4 1", "gates gate outer_gate 0"])],
    "SP210": [
        (["gates gate effective@4 0.3", "gates gate gradient@4 1e-12",
          "magnitude fusion branch_ratio@4 0.4"],
         ["gates gate effective@4 0.3", "gates gate gradient@4 1e-3",
          "magnitude fusion branch_ratio@4 0.4"]),
        (["gates gate effective@4 0.3", "gates gate gradient@4 0"],
         ["gates gate effective@4 0", "gates gate gradient@4 0"]),
        (["gates gate effective@4 0.3", "gates gate gradient@4 0", "gradflow gate norm_mean@4 0"],
         ["gates gate effective@4 0.3", "gates gate gradient@4 0", "gradflow gate norm_mean@4 1"]),
    ],
    "SP211": [(["gates gate value@4 0", "magnitude fusion branch_ratio@4 0"],
               ["gates gate value@4 0", "magnitude fusion branch_ratio@4 0.5"]),
              (["gates gate value@4 0", "magnitude fusion branch_ratio@4 0"],
               ["gates gate value@4 0.3", "magnitude fusion branch_ratio@4 0"])],
    "SP212": [(["step 200", RUN, "gates gate moved@4 0"], ["step 1", RUN, "gates gate moved@4 0"])],
    "SP213": [(["gates gate moved@4 0.06", "gates gate gradient@4 1e-9"],
               ["gates gate moved@4 0.06", "gates gate gradient@4 1e-2"])],
    "SP301": [(["gradflow projector state 1", "gradflow projector trainable 2"],
               ["gradflow projector state 1", "gradflow projector trainable 0"])],
    "SP302": [(["gradflow projector state 3", "gradflow projector none 1"],
               ["gradflow projector state 3", "gradflow projector none 0"])],
    "SP303": [
        (["gradflow projector state 2", "gradflow projector zero 1", "gradflow projector:w state 2",
          "gradflow projector:w trainable 1", "gradflow projector:w explained 0"],
         ["gradflow projector state 2", "gradflow projector zero 1", "gradflow projector:w state 2",
          "gradflow projector:w trainable 1", "gradflow projector:w explained 2"])],
    "SP304": [(["gradflow fusion deadlock@4 1"], ["gradflow fusion deadlock@4 0"])],
    "SP305": [
        (["gradflow fusion state@4 2", "gradflow fusion zero@4 1", "gradflow fusion:A state@4 2",
          "gradflow fusion:A trainable@4 1", "gradflow fusion:A explained@4 4"],
         ["gradflow fusion state@4 2", "gradflow fusion zero@4 1", "gradflow fusion:A state@4 2",
          "gradflow fusion:A trainable@4 1", "gradflow fusion:A explained@4 1"])],
    "SP306": [(["gradflow fusion nonfinite@4 1"], ["gradflow fusion nonfinite@4 0"])],
    "SP307": [(["gradflow model loss nan"], ["gradflow model loss 2.5"])],
    "SP308": [(["parameters projector trainable_not_in_optimizer 9"],
               ["parameters projector trainable_not_in_optimizer 0"])],
    "SP309": [(["parameters fusion frozen_in_optimizer 9"],
               ["parameters decoder frozen_in_optimizer 9"])],
    "SP310": [(["parameters optimizer duplicates 1"], ["parameters optimizer duplicates 0"])],
    "SP311": [(["parameters optimizer strangers 7"], ["parameters optimizer strangers 0"])],
    "SP312": [(["parameters model lr_max 0.1", "parameters projector lr_max 0"],
               ["parameters model lr_max 0", "parameters projector lr_max 0"]),
              (["step 9", "parameters model lr_max 0"], ["parameters model lr_max 0"])],
    "SP313": [
        (["gradflow model optimizer_given 1", "gradflow projector moved_share 0",
          "gradflow projector state 3"],
         ["gradflow model optimizer_given 1", "gradflow projector moved_share 1",
          "gradflow projector state 3", "gradflow projector update_to_weight 1e-3"]),
        (["gradflow model optimizer_given 1", "gradflow projector moved_share 1",
          "gradflow projector state 3", "gradflow projector update_to_weight 1e-12"],
         ["gradflow model optimizer_given 0", "gradflow projector moved_share 1",
          "gradflow projector state 3", "gradflow projector update_to_weight 1e-12"]),
    ],
    "SP314": [(["gradflow model frozen_moved 2"], ["gradflow model frozen_moved 0"])],
    "SP315": [(["gradflow model optimizer_given 1", "gradflow fusion update_to_weight@4 0.5"],
               ["gradflow model optimizer_given 1", "gradflow gate update_to_weight@4 0.5"])],
    "SP316": [(["gradflow model norm 750"], ["gradflow model norm 5"])],
    "SP317": [(["gradflow model batches 8", "gradflow projector snr 0.01"],
               ["gradflow model batches 2", "gradflow projector snr 0.01"])],
    "SP318": [(["gradflow projector slope -1"], ["gradflow projector slope 0.99"]),
              (["gradflow projector slope 0.001"], ["gradflow projector slope 1.01"])],
    "SP319": [(["gradflow projector slope_mismatch 0.7", "gradflow projector slope 1"],
               ["gradflow projector slope_mismatch 0.01", "gradflow projector slope 1"]),
              (["gradflow projector slope_mismatch 0.7"],  # SP318 says it
               ["gradflow projector slope_mismatch 2", "gradflow projector slope -1"])],
    "SP320": [(["gradflow projector downhill -0.2"], ["gradflow projector downhill 0.2"])],
    "SP321": [
        (["gradflow model optimizer_given 1", "gradflow projector state 3",
          "gradflow projector update_norm nan"],
         ["gradflow model optimizer_given 1", "gradflow projector state 3",
          "gradflow projector update_norm 0.1"]),
        (["gradflow model optimizer_given 1", "gradflow projector state 3",
          "gradflow projector update_norm inf"],
         # SP306 says it
         ["gradflow model optimizer_given 1", "gradflow projector state 4",
          "gradflow projector update_norm nan"])],
    "SP322": [
        (["gradflow fusion state@4 2", "gradflow fusion zero@4 1", "gradflow fusion:A state@4 2",
          "gradflow fusion:A trainable@4 1", "gradflow fusion:A explained@4 6"],
         ["gradflow fusion state@4 2", "gradflow fusion zero@4 1", "gradflow fusion:A state@4 2",
          "gradflow fusion:A trainable@4 1", "gradflow fusion:A explained@4 2"])],
    "SP401": [(["magnitude fusion calls@4 0"], ["magnitude fusion calls@4 1"]),
              (["magnitude fusion calls@4 0"],
               ["magnitude fusion calls@4 0", "gates gate outer_gate 0"])],
    "SP402": [(["magnitude fusion calls@4 2"], ["magnitude fusion calls@4 1"])],
    "SP403": [(["magnitude fusion after_layer@4 3"], ["magnitude fusion after_layer@4 4"])],
    "SP404": [
        (["magnitude fusion contribution_median@4 1", "magnitude fusion gated_ratio@4 0.2"],
         ["magnitude fusion contribution_median@4 0.2", "magnitude fusion gated_ratio@4 0.21"]),
        (["magnitude fusion contribution_median@4 1", "magnitude fusion gated_ratio@4 0.2"],
         # rounding of bfloat16
         ["magnitude fusion contribution_median@4 0.004", "magnitude fusion gated_ratio@4 0.001"]),
    ],
    "SP405": [(["magnitude projector calls 0"], ["magnitude projector calls 1"])],
    "SP406": [
        (["influence signal:swapped changed 0", "magnitude fusion contribution_median@4 0.2"],
         ["influence signal:swapped changed 0.9", "magnitude fusion contribution_median@4 0.2"]),
        (["step 200", "influence signal:swapped changed 0",
          "magnitude fusion contribution_median@4 0"],
         # a cold start
         ["influence signal:swapped changed 0", "magnitude fusion contribution_median@4 0"]),
    ],
    "SP407": [
        (["influence signal:swapped kl 1e-6", "influence signal:swapped changed 1",
          "influence fusion:off kl 0.1"],
         ["influence signal:swapped kl 0.05", "influence signal:swapped changed 1",
          "influence fusion:off kl 0.1"])],
    "SP408": [(["step 300", "influence signal:swapped loss_change 0.01"],
               ["step 300", "influence signal:swapped loss_change 0.5"]),
              (["step 300", "influence signal:swapped loss_change 0.01"],
               ["step 0", "influence signal:swapped loss_change 0.01"])],
    "SP409": [(["influence signal:own loss 15.4", "influence fusion:off loss 6.3"],
               ["influence signal:own loss 6.5", "influence fusion:off loss 6.3"])],
    "SP410": [(["influence signal:repeat changed 0", "influence gate:zero parity_changed 0.5",
                "influence gate:zero parity_max_change 1"],
               ["influence signal:repeat changed 0", "influence gate:zero parity_changed 0"]),
              (["influence gate:zero parity_changed 0",
                "influence signal:none pictures_parity_changed 0.5"],
               ["influence signal:repeat pictures_changed 0.5",
                "influence signal:none pictures_parity_changed 0.5"])],
    "SP411": [(["magnitude fusion contribution_median@4 0.2", "influence fusion changed@4 0"],
               ["magnitude fusion contribution_median@4 0", "influence fusion changed@4 0"])],
    "SP412": [(["sensitivity projector:p.scale strength 2",
                "sensitivity projector:p.scale relative_change_tokens 0"],
               ["sensitivity projector:p.scale strength 2",
                "sensitivity projector:p.scale relative_change_tokens 0.7"])],
    "SP413": [(["sensitivity projector:LayerNorm~p.norm elasticity_after 0"],
               ["sensitivity projector:p.scale elasticity_tokens 1"]),
              (["sensitivity gate elasticity_contribution@4 0.01"],
               ["sensitivity gate elasticity_contribution@4 0.01",
                "sensitivity gate strength_range@4 1"])],
    "SP414": [(["attention fusion max_weight@4 0.999"], ["attention fusion max_weight@4 0.3"]),
              (["attention fusion max_weight@4 1"],
               ["attention fusion max_weight@4 1", "attention fusion tokens_in_use@4 1"])],
    "SP415": [(["attention fusion entropy_relative@4 0.99999"],
               ["attention fusion entropy_relative@4 0.9"])],
    "SP416": [(["attention fusion masked_weight@4 0.2"], ["attention fusion masked_weight@4 0"])],
    "SP417": [(["attention fusion all_masked@4 0.5"], ["attention fusion all_masked@4 0"]),
              (["attention fusion nonfinite@4 0.5"],
               ["attention fusion nonfinite@4 0.5", "magnitude projector nonfinite 1",
                "magnitude projector tokens 1"]),
              (["attention fusion nonfinite@4 0.5"],  # keys that overflowed: SP102
               ["attention fusion nonfinite@4 0.5", "parameters model dtype.float16 9",
                "magnitude projector max_abs 60000"])],
    "SP418": [(["attention fusion row_sum_error@4 0.5"],
               ["attention fusion row_sum_error@4 0.01"])],
    "SP419": [(["influence signal:repeat changed 0.5", "influence signal:repeat max_change 0.3"],
               ["influence signal:repeat changed 0", "influence signal:repeat max_change 0"])],
    "SP420": [(["diagnosis magnitude not_measured 2"], ["diagnosis magnitude not_measured 0"]),
              (["diagnosis generation not_measured 3"],
               ["diagnosis generation not_measured 0"])],
    "SP421": [(["attention fusion tokens@4 4", "data signal tokens 8"],
               ["attention fusion tokens@4 8", "data signal tokens 8"])],
    "SP422": [(["independence signal:others kl 0.02", "independence signal:replaced kl 0.1"],
               ["independence signal:others kl 0", "independence signal:replaced kl 0.1"]),
              (["independence signal:others kl 0.02", "independence signal:replaced kl 0.1"],
               # as much noise when nothing is exchanged
               ["independence signal:others kl 0.02", "independence signal:replaced kl 0.1",
                "independence signal:repeat kl 0.02"])],
    "SP423": [([*_generated("beams", 0.1), *_generated("greedy", 1e-9)],
               [*_generated("beams", 1e-9), *_generated("greedy", 1e-9)]),
              # a difference within bfloat16's rounding; a model that does not listen yet
              ([*_generated("beams", 0.1)], [*_generated("beams", 2e-5, rounding=2e-4, clip=1e-4)]),
              ([*_generated("beams", 0.1)], [*_generated("beams", 1e-7, clip=0)])],
    "SP424": [(_generated("greedy", 0.1), _generated("greedy", 1e-9))],
    "SP425": [(["generation generate:beams failed 1"], ["generation generate:beams failed 0"])],
    "SP426": [(["independence text:later kl 0.1"], ["independence text:later kl 0"])],
    "SP427": [(["independence text:padding kl 0.1"], ["independence text:padding kl 0"])],
    "SP428": [(["independence text unheard_front 1"], ["independence text unheard_front 0"])],
    "SP429": [(["attention fusion mask_displaced@4 1"],
               ["attention fusion mask_displaced@4 0"])],
    "SP501": [(["parameters decoder total 100", "parameters decoder trainable 100"],
               ["parameters decoder total 100", "parameters decoder trainable 1"]),
              (["parameters lm_head total 100", "parameters lm_head trainable 100"],
               ["parameters lm_head total 100", "parameters lm_head trainable 0"])],
    "SP502": [(["parameters encoder trainable 5"], ["parameters encoder trainable 0"])],
    "SP503": [(["parameters model trainable 0"], [PATH])],
    "SP504": [([PATH, "parameters projector total 5", "parameters projector trainable 0"],
               [PATH, "parameters projector total 5", "parameters projector trainable 5"])],
    "SP505": [([PATH, "parameters fusion total 5", "parameters fusion trainable 0"],
               [PATH, "parameters fusion total 5", "parameters fusion trainable 5"])],
    "SP506": [(["claims model stated 380e6", "claims model measured 178.9e6"],
               ["claims model stated 10.5e6", "claims model measured 10485760"])],
    "SP507": [(["claims memory stated_low 38e9", "claims memory stated_high 42e9",
                "claims memory measured 31e9"],
               ["claims memory stated_low 38e9", "claims memory stated_high 42e9",
                "claims memory measured 40e9"])],
    "SP508": [(["parameters projector total 5", "parameters projector trainable 5",
                "parameters projector dtype.bfloat16 5"],
               ["parameters projector total 5", "parameters projector trainable 5",
                "parameters projector dtype.float32 5"])],
    "SP509": [(["modules fusion lora_scaling_min@4 0.001", "modules fusion lora_scaling_max@4 1"],
               ["modules fusion lora_scaling_min@4 1", "modules fusion lora_scaling_max@4 2"])],
    "SP510": [(["parameters encoder trainable 0", "modules encoder noisy_in_training 3"],
               ["parameters encoder trainable 9", "modules encoder noisy_in_training 3"])],
    "SP601": [(["data text batches_all_ignored 0.5"], ["data text batches_all_ignored 0"]),
              (["data text rows_all_ignored 0.1"], ["data text rows_all_ignored 0"])],
    "SP602": [(["data text rows_fully_supervised 1"], ["data text rows_fully_supervised 0"]),
              (["data text rows 4", "data text shared_prefix 9",
                "data text shared_prefix_supervised 0.9"],
               ["data text rows 1", "data text shared_prefix 9",
                "data text shared_prefix_supervised 0.9"])],
    "SP603": [(["data text agreement_same 0.05", "data text agreement_next 1"],
               ["data text agreement_same 1", "data text agreement_next 0.05"])],
    "SP604": [(["data text ends_with_eos 0.5"], ["data text ends_with_eos 1"])],
    "SP605": [(["data text supervised_masked 0.2"], ["data text supervised_masked 0"])],
    "SP606": [(["data text rows_all_masked 1"], ["data text rows_all_masked 0"])],
    "SP607": [(["data signal nonfinite 0.1"], ["data signal nonfinite 0"])],
    "SP608": [(["data signal silent 0.1"], ["data signal silent 0"])],
    "SP609": [(["data signal clips 8", "data signal distinct 0.125"],
               ["data signal clips 8", "data signal distinct 1",
                "data signal cosine_between_clips 0.9"]),
              (["data signal clips 8", "data signal distinct 0.25",
                "data signal one_clip_batches 1"],
               ["data signal clips 8", "data signal distinct 0.25",
                "data signal one_clip_batches 0"])],
    "SP610": [(["data encoder cosine_between_clips 1", "data signal cosine_between_clips 0.5"],
               ["data encoder cosine_between_clips 1", "data signal cosine_between_clips 1"])],
    "SP611": [(["data signal token_mismatch 1"], ["data signal token_mismatch 0"])],
    "SP612": [(["data text left_padded 0.5", "data text right_padded 0.5"],
               ["data text left_padded 0", "data text right_padded 1"])],
    "SP613": [(["data signal same_text_other_signal 0.8"],
               ["data signal same_text_other_signal 0.01"])],
    "SP614": [(["data model refused 0.5"], ["data model refused 0"])],
    "SP615": [(["data text both_sides_padded 1"], ["data text both_sides_padded 0"])],
    "SP616": [(["data text signal_masked 1"], ["data text signal_masked 0"]),
              (["data text signal_masked 0.1"], ["data text signal_supervised 0"])],
    "SP701": [(["scores score versus_shuffled 2", "scores score versus_shuffled_low -1",
                "scores score versus_shuffled_high 5"],
               ["scores score versus_shuffled 20", "scores score versus_shuffled_low 15",
                "scores score versus_shuffled_high 25"])],
    "SP702": [(["scores score cider 12"], ["scores score cider 40"]),
              (["scores score cider 40", "scores score commonest_caption 41"],
               ["scores score cider 40", "scores score commonest_caption 19"])],
    "SP703": [(["scores score commonest_share 0.9"], ["scores score commonest_share 0.05"])],
    "SP704": [(["scores score cider nan"], ["scores score cider 30"])],
    "SP705": [(["scores score cider 30", "scores score cider_low 15", "scores score cider_high 45"],
               ["scores score cider 30", "scores score cider_low 28",
                "scores score cider_high 32"])],
    "SP706": [(["scores score cider 30", "scores score nearest_neighbour 60"],
               ["scores score cider 60", "scores score nearest_neighbour 30"])],
    "SP707": [(["scores score cider 30", "scores score gate_off 30"],
               ["scores score cider 30", "scores score gate_off 2"])],
}  # fmt: skip


def test_every_finding_has_a_case() -> None:
    assert list(CASES) == list(CATALOGUE)


@pytest.mark.parametrize(
    ("code", "fires", "silent"),
    [(code, *case) for code, cases in CASES.items() for case in cases],
)
def test_fires_and_stays_silent(code: str, fires: list[str], silent: list[str]) -> None:
    found = codes(log(*fires))
    assert code in found, f"only {sorted(found)}"
    assert found[code].measured
    assert "{" not in found[code].expected + found[code].remedy + found[code].why
    assert code not in codes(log(*silent))


@pytest.mark.parametrize("code", list(CASES))
def test_nan_does_not_crash_a_rule(code: str) -> None:
    for fires, _ in CASES[code]:
        records = [
            Record(r.step, r.probe, r.component, r.layer, r.statistic, math.nan, r.unit)
            for r in log(*fires)
            if r.statistic not in ("state", "explained")
        ]
        judge(records)


def test_no_records_no_findings() -> None:
    assert judge([]) == []

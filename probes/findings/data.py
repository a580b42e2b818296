"""SP6: whether these batches can teach anything."""

from collections.abc import Iterator

from probes.findings.facts import Facts, Hit
from probes.findings.finding import Link, Severity
from probes.findings.rule import Family
from probes.findings.thresholds import Thresholds

DATA = Family(
    "SP6",
    "Data",
    "Whether labels are there and in place, and whether the clips differ.",
)
_DATA = "data"


@DATA.rule(
    "SP601", "No token is supervised", Link.DATA, Severity.ERROR, symptom=False,
    what="Batches whose labels are all -100; rows without any label are a warning.",
    why="The loss is 0 or NaN, and no gradient says anything.",
    expected="labels on every caption",
    source="definition of the loss",
    remedy="check where labels are masked: the caption must keep its ids, truncation must not cut "
    "it away (data.max_caption_tokens)",
)  # fmt: skip
def _unsupervised(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    batches = facts.value(_DATA, "text", "batches_all_ignored")
    rows = facts.value(_DATA, "text", "rows_all_ignored")
    if batches:
        yield Hit("text", None, f"{batches:.1%} of the batches have no label")
    elif rows:
        yield Hit("text", None, f"{rows:.1%} of the rows have no label", Severity.WARNING)


@DATA.rule(
    "SP602", "The prompt is supervised", Link.DATA, Severity.WARNING, symptom=False,
    what="Rows whose every real token has a label, or a shared beginning of at least 3 tokens that "
    "is mostly labelled; fires from half of them on.",
    why="The model learns to recite the prompt, which needs no sound, and the loss looks good.",
    expected="labels on the caption alone",
    source="usual practice of instruction tuning",
    remedy="set the labels of the prompt to -100",
)  # fmt: skip
def _prompt(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    full = facts.value(_DATA, "text", "rows_fully_supervised") or 0.0
    prefix = facts.value(_DATA, "text", "shared_prefix") or 0.0
    share = facts.value(_DATA, "text", "shared_prefix_supervised") or 0.0
    several = (facts.value(_DATA, "text", "rows") or 0) > 1
    if full >= 0.5:
        yield Hit("text", None, f"{full:.1%} of the rows are supervised throughout")
    elif several and prefix >= 3 and share >= 0.5:
        measured = f"{share:.1%} of the {prefix:.0f} tokens with which every row begins"
        yield Hit("text", None, measured)


@DATA.rule(
    "SP603", "Labels do not stand where their tokens are", Link.DATA, Severity.ERROR,
    symptom=False,
    what="Labels that equal the input id at their place, at the next and at the previous one; "
    "fires when fewer than half equal their own while more equal a neighbour's.",
    why="The model shifts labels itself: labels shifted beforehand teach it the token after next.",
    expected="labels[t] = input_ids[t] wherever it is not -100",
    source="the convention of transformers",
    remedy="labels = input_ids.clone(), masked; no [:, 1:] before the model",
)  # fmt: skip
def _shifted(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    same = facts.value(_DATA, "text", "agreement_same")
    for side in ("next", "previous"):
        other = facts.value(_DATA, "text", f"agreement_{side}")
        if same is not None and other is not None and same < 0.5 and other > max(same, 0.5):
            yield Hit("text", None, f"{other:.1%} equal the {side} input id, {same:.1%} their own")


@DATA.rule(
    "SP604", "Captions are cut off", Link.DATA, Severity.WARNING, symptom=False,
    what="Supervised rows whose last label is not the end of text; fires above {truncated:g}.",
    why="A model that never sees the end does not learn to stop: captions ramble on.",
    expected="an end of text after every caption",
    source="usual practice",
    remedy="--set data.max_caption_tokens=64 (or more), and supervise the end token",
)  # fmt: skip
def _cut(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "text", "ends_with_eos")
    if share is not None and 1 - share > limits.truncated:
        yield Hit("text", None, f"{1 - share:.1%} of the captions end without an end token")


@DATA.rule(
    "SP605", "Padding is supervised", Link.DATA, Severity.ERROR, symptom=False,
    what="Labels at positions whose attention mask is 0.",
    why="The model is taught to predict padding from padding, often most of the tokens.",
    expected="-100 wherever the mask is 0",
    source="definition of padding",
    remedy="labels.masked_fill_(attention_mask == 0, -100)",
)  # fmt: skip
def _padding(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "text", "supervised_masked")
    if share:
        yield Hit("text", None, f"{share:.1%} of the labels are on masked positions")


@DATA.rule(
    "SP606", "A text is masked throughout", Link.DATA, Severity.ERROR, symptom=False,
    what="Rows whose attention mask is 0 everywhere.",
    why="Attention over nothing: NaN, or whatever the kernel leaves.",
    expected="at least one token per row",
    source="definition of the mask",
    remedy="check the sense of the mask: 1 for real tokens",
)  # fmt: skip
def _masked(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    count = facts.value(_DATA, "text", "rows_all_masked")
    if count:
        yield Hit("text", None, f"{count:.0f} rows are masked throughout")


@DATA.rule(
    "SP607", "NaN or infinity in the signal", Link.DATA, Severity.ERROR, symptom=False,
    what="Clips with a NaN or infinite element, as given to the model or as the encoder made them.",
    why="One such clip makes the loss of its batch NaN, and the step with it.",
    expected="finite embeddings",
    source="arithmetic",
    remedy="find the clips with `safe-train data check ROOT` and leave them out",
)  # fmt: skip
def _nonfinite(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for component in ("signal", "encoder"):
        share = facts.value(_DATA, component, "nonfinite")
        if share:
            yield Hit(component, None, f"{share:.1%} of the clips")
            return


@DATA.rule(
    "SP608", "Silent clips", Link.DATA, Severity.WARNING, symptom=False,
    what="Clips whose signal is exactly zero; all of them are an error.",
    why="There is nothing to hear, and the caption is learned as a guess.",
    expected="no silent clip",
    source="definition of silence",
    remedy="check decoding and paths with `safe-train data check ROOT`",
)  # fmt: skip
def _silent(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    for component in ("signal", "encoder"):
        share = facts.value(_DATA, component, "silent")
        if share:
            severity = Severity.ERROR if share == 1 else None
            yield Hit(component, None, f"{share:.1%} of the clips are all zeros", severity)
            return


@DATA.rule(
    "SP609", "Every clip is the same", Link.DATA, Severity.ERROR, symptom=False,
    what="Different clips over clips, and mean cosine between them; fires when several texts share "
    "one signal, or the cosine exceeds {same_clips:g}, and when every batch of several clips has "
    "one clip for all its texts (some batches: a warning).",
    why="The signal says nothing about the caption: a cache with one key, or a loader that returns "
    "the first file.",
    expected="different clips for different texts",
    source="definition",
    remedy="look at what the loader returns for two clips; empty the cache of embeddings",
)  # fmt: skip
def _same(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    clips = facts.value(_DATA, "signal", "clips") or 0
    distinct = facts.value(_DATA, "signal", "distinct")
    cosine = facts.value(_DATA, "signal", "cosine_between_clips")
    if facts.value(_DATA, "signal", "silent") == 1 or clips < 2 or distinct is None:
        return
    if distinct * clips < 1.5 or (cosine is not None and cosine > limits.same_clips):
        text = "" if cosine is None else f", mean cosine {cosine:.6f}"
        yield Hit("signal", None, f"{distinct * clips:.0f} different among {clips:.0f} clips{text}")
        return
    share = facts.value(_DATA, "signal", "one_clip_batches")
    if share:
        severity = None if share == 1 else Severity.WARNING
        yield Hit(
            "signal", None, f"{share:.1%} of the batches have one clip for all texts", severity
        )


@DATA.rule(
    "SP610", "The encoder makes one embedding of every clip", Link.ENCODER, Severity.ERROR,
    what="As SP609, for what leaves the encoder while what enters it differs.",
    why="Everything after the encoder can only learn a constant.",
    expected="different embeddings for different clips",
    source="definition",
    remedy="check the encoder's weights (loaded?), its sampling rate and its normalisation",
)  # fmt: skip
def _encoder(facts: Facts, limits: Thresholds) -> Iterator[Hit]:
    cosine = facts.value(_DATA, "encoder", "cosine_between_clips")
    before = facts.value(_DATA, "signal", "cosine_between_clips")
    alike = before is not None and before > limits.same_clips
    if cosine is not None and cosine > limits.same_clips and not alike:
        yield Hit("encoder", None, f"mean cosine between clips {cosine:.6f}")


@DATA.rule(
    "SP611", "Placeholders and tokens do not match", Link.DATA, Severity.ERROR, symptom=False,
    what="Placeholder ids in the text against tokens of the projector, per batch.",
    why="Tokens are dropped, or land in another text's places.",
    expected="as many placeholders as tokens",
    source="definition of splicing",
    remedy="repeat the placeholder once per token when the text is made",
)  # fmt: skip
def _mismatch(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "signal", "token_mismatch")
    if share:
        placeholders = facts.value(_DATA, "signal", "placeholders") or 0.0
        tokens = facts.value(_DATA, "signal", "tokens") or 0.0
        measured = f"{placeholders:.1f} placeholders per text, {tokens:.1f} tokens per clip"
        yield Hit("signal", None, measured)


@DATA.rule(
    "SP612", "Texts are padded on both sides", Link.DATA, Severity.WARNING, symptom=False,
    what="Padded rows with padding on the left, and with padding on the right; fires when there "
    "are both.",
    why="Positions and labels are then off for one of the two: generation needs the left, training "
    "usually the right.",
    expected="one side",
    source="usual practice",
    remedy="set tokenizer.padding_side once: right for training, left for generation",
)  # fmt: skip
def _sides(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    left = facts.value(_DATA, "text", "left_padded")
    right = facts.value(_DATA, "text", "right_padded")
    if left and right:
        yield Hit("text", None, f"{left:.1%} of the padded rows left, {right:.1%} right")


@DATA.rule(
    "SP613", "The same caption goes with other clips", Link.DATA, Severity.NOTE, symptom=False,
    what="Captions that also occur with another clip; fires from half of them on.",
    why="Captions from a template can be guessed without listening: a score needs its control.",
    expected="captions that tell clips apart",
    source="a constant caption reaches CIDEr 15.6 on AudioCaps",
    remedy="nothing is broken: judge by another clip's audio (SP408, SP701), not by loss or score",
)  # fmt: skip
def _template(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "signal", "same_text_other_signal")
    if share is not None and share >= 0.5:
        yield Hit("text", None, f"{share:.1%} of the captions occur with other clips too")


@DATA.rule(
    "SP614", "The model refuses a batch", Link.DATA, Severity.ERROR, symptom=False,
    what="Batches that the model's own checks reject.",
    why="Training stops at the first of them.",
    expected="batches that the model takes",
    source="the model's own error",
    remedy="read the error under 'not measured', which names the clip or the shape",
)  # fmt: skip
def _refused(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "model", "refused")
    if share:
        yield Hit("signal", None, f"{share:.1%} of the batches are refused")


@DATA.rule(
    "SP615", "The attention mask is shifted", Link.DATA, Severity.WARNING, symptom=False,
    what="Padded rows that are masked to the left and to the right of the same text; an error "
    "where padding is attended to besides.",
    why="The first tokens of the prompt are hidden and as many places of padding are read as text.",
    expected="a mask that is 1 from the first to the last token of the text",
    source="definition of the mask",
    remedy="make the mask from the ids that the model is given: (ids != pad).long(), no roll, no "
    "[:, 1:] on one of them",
)  # fmt: skip
def _shifted_mask(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    both = facts.value(_DATA, "text", "both_sides_padded")
    attended = facts.value(_DATA, "text", "padding_attended")
    if both:
        severity = Severity.ERROR if attended else None
        yield Hit("text", None, f"{both:.1%} of the padded rows are masked on both sides", severity)


@DATA.rule(
    "SP616", "Placeholders of the signal are masked", Link.DATA, Severity.ERROR, symptom=False,
    what="Share of the signal's placeholders whose attention mask is 0; all of them are an error, "
    "some a warning.",
    why="The signal's tokens are put where no text may look: the model answers without them.",
    expected="an attention mask of 1 at every placeholder",
    source="definition of the mask",
    remedy="make the mask after the placeholders have been put into the text, and do not mask them "
    "as padding: only their labels are -100",
)  # fmt: skip
def _signal_masked(facts: Facts, _limits: Thresholds) -> Iterator[Hit]:
    share = facts.value(_DATA, "text", "signal_masked")
    if share:
        severity = None if share == 1 else Severity.WARNING
        yield Hit("text", None, f"{share:.1%} of the placeholders are masked", severity)

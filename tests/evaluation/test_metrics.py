"""Scores against an independent CIDEr-D and known figures; every way a score is undefined."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import MetricError
from safe.evaluation import meteor as meteor_module
from safe.evaluation.floors import commonest_caption
from safe.evaluation.meteor import meteor
from safe.evaluation.metrics import Scorer, Scores, score
from safe.evaluation.text import tokenize

CIDER = ("cider",)
REFERENCES = {
    "dog": ["a dog barks", "the dog is barking"],
    "rain": ["rain falls on a roof", "it is raining"],
    "train": ["a train passes by", "a train horn blows"],
}
PREDICTIONS = {"dog": "A dog barks.", "rain": "Rain is falling", "train": "A car passes"}


# ---- CIDEr-D written anew from the paper's formula, dense vectors instead of dictionaries -------


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def cider_d(
    references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], sigma: float = 6.0
) -> np.ndarray:
    """CIDEr-D x 100 per clip: TF-IDF vectors per n, clipped cosine, Gaussian length penalty."""
    ids = list(references)
    total = np.zeros(len(ids))
    for n in range(1, 5):
        ref_counts = [[_grams(text.split(), n) for text in references[key]] for key in ids]
        pred_counts = [_grams(predictions[key].split(), n) for key in ids]
        documents = [set().union(*counts) for counts in ref_counts]
        found = set().union(*documents, *pred_counts)
        index = {gram: column for column, gram in enumerate(sorted(found))}
        frequency = np.zeros(len(index))
        for document in documents:
            for gram in document:
                frequency[index[gram]] += 1
        idf = np.log(len(ids) / np.maximum(frequency, 1))  # exactly 0 for what all clips say

        def vector(counts: Counter[tuple[str, ...]], index=index, idf=idf) -> np.ndarray:
            dense = np.zeros(len(index))
            for gram, count in counts.items():
                dense[index[gram]] = count
            return dense * idf

        for row, key in enumerate(ids):
            hypothesis = vector(pred_counts[row])
            for text, counts in zip(references[key], ref_counts[row], strict=True):
                reference = vector(counts)
                norms = np.linalg.norm(hypothesis) * np.linalg.norm(reference)
                if norms == 0:
                    continue
                cosine = np.minimum(hypothesis, reference) @ reference / norms
                # The reference implementation measures length in bigrams.
                gap = max(len(predictions[key].split()) - 1, 0) - max(len(text.split()) - 1, 0)
                penalty = math.exp(-(gap**2) / (2 * sigma**2))
                total[row] += cosine * penalty / len(references[key])
    return 1000 * total / 4  # x 10 by the paper, x 100 by custom


WORDS = st.lists(st.sampled_from(["a", "dog", "barks", "rain", "car"]), min_size=1, max_size=9)
CLIPS = st.lists(
    st.tuples(WORDS.map(" ".join), st.lists(WORDS.map(" ".join), min_size=1, max_size=3)),
    min_size=2,
    max_size=6,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(CLIPS)
def test_cider_is_the_formula_on_any_corpus(clips: list[tuple[str, list[str]]]) -> None:
    references = {f"{n}": refs for n, (_, refs) in enumerate(clips)}
    predictions = {f"{n}": caption for n, (caption, _) in enumerate(clips)}
    expected = cider_d(references, predictions)
    grams = [
        {gram for text in texts for n in range(1, 5) for gram in _grams(text.split(), n)}
        for texts in references.values()
    ]
    if all(document == grams[0] for document in grams):
        with pytest.raises(MetricError, match="every idf is zero"):
            Scorer(references, "simple")
        return
    scores = score(predictions, references, tokenizer="simple", metrics=CIDER)
    np.testing.assert_allclose(list(scores.per_clip_cider.values()), expected, atol=1e-9)
    assert scores.cider == pytest.approx(expected.mean(), abs=1e-9)


def test_cider_is_the_formula_on_audiocaps(audiocaps_test: dict[str, list[str]]) -> None:
    part = dict(list(audiocaps_test.items())[:150])
    references = {key: texts[1:] for key, texts in part.items()}
    predictions = {key: texts[0] for key, texts in part.items()}
    scores = score(predictions, references, tokenizer="simple", metrics=CIDER)
    tokens = tokenize({key: [text] for key, text in predictions.items()}, "simple")
    expected = cider_d(tokenize(references, "simple"), {key: t[0] for key, t in tokens.items()})
    np.testing.assert_allclose(list(scores.per_clip_cider.values()), expected, atol=1e-8)


# ---- known figures on the AudioCaps test captions -----------------------------------------------


def _people(captions: dict[str, list[str]], left_out: int, tokenizer: str) -> Scores:
    """The captions of one column of people scored against those of the other four."""
    references = {k: texts[:left_out] + texts[left_out + 1 :] for k, texts in captions.items()}
    predictions = {key: texts[left_out] for key, texts in captions.items()}
    return score(predictions, references, tokenizer=tokenizer, metrics=CIDER)


def test_people_against_each_other_without_java(audiocaps_test: dict[str, list[str]]) -> None:
    means = [_people(audiocaps_test, left_out, "simple").cider for left_out in range(5)]
    assert np.mean(means) == pytest.approx(90.75, abs=0.01)


def test_java_and_java_free_cider_agree(java: None, audiocaps_test: dict[str, list[str]]) -> None:
    ptb = _people(audiocaps_test, 0, "ptb")
    simple = _people(audiocaps_test, 0, "simple")
    assert ptb.tokenizer == "ptb"
    assert simple.tokenizer == "simple"
    assert ptb.cider == pytest.approx(89.648, abs=0.001)
    # Measured 0.030 (0.012 over all five columns); stripping all punctuation was off by 0.1.
    assert abs(ptb.cider - simple.cider) < 0.05


def test_one_caption_for_every_clip_scores_little(audiocaps_test: dict[str, list[str]]) -> None:
    constant = commonest_caption(text for texts in audiocaps_test.values() for text in texts)
    scorer = Scorer(audiocaps_test, "simple")
    floor = scorer.score(dict.fromkeys(audiocaps_test, "A man speaking"), CIDER)
    assert floor.cider == pytest.approx(8.14, abs=0.01)  # the commonest caption of the train split
    assert floor.cider_interval[0] < floor.cider < floor.cider_interval[1]
    assert scorer.score(dict.fromkeys(audiocaps_test, constant), CIDER).cider < 20


def test_the_mean_over_small_batches_is_not_the_score(
    audiocaps_test: dict[str, list[str]],
) -> None:
    """Idf comes from the scored references: of four clips every word is rare, so scores swell."""
    ids = list(audiocaps_test)[:400]
    references = {key: audiocaps_test[key][1:] for key in ids}
    predictions = {key: audiocaps_test[key][0] for key in ids}

    def cider(keys: list[str]) -> float:
        part = ({k: predictions[k] for k in keys}, {k: references[k] for k in keys})
        return score(*part, tokenizer="simple", metrics=CIDER).cider

    whole = cider(ids)
    batches = np.mean([cider(ids[start : start + 4]) for start in range(0, len(ids), 4)])
    assert batches - whole > 5


# ---- the scores object ---------------------------------------------------------------------------


def test_a_scorer_scores_many_sets_like_score_does() -> None:
    scorer = Scorer(REFERENCES, "simple")
    for predictions in (PREDICTIONS, dict.fromkeys(REFERENCES, "a dog barks")):
        ours = scorer.score(predictions, ("cider", "bleu", "rouge"))
        once = score(
            predictions, REFERENCES, tokenizer="simple", metrics=("cider", "bleu", "rouge")
        )
        assert ours == once


def test_order_of_predictions_does_not_matter() -> None:
    backwards = dict(reversed(PREDICTIONS.items()))
    scorer = Scorer(REFERENCES, "simple")
    assert scorer.score(backwards, CIDER) == scorer.score(PREDICTIONS, CIDER)
    assert list(scorer.score(backwards, CIDER).per_clip_cider) == list(REFERENCES)


def test_a_perfect_caption_scores_the_most() -> None:
    references = {key: texts[:1] for key, texts in REFERENCES.items()}
    predictions = {key: texts[0] for key, texts in references.items()}
    scores = score(predictions, references, tokenizer="simple", metrics=("cider", "bleu", "rouge"))
    assert scores.per_clip_cider["rain"] == pytest.approx(1000)  # 5 words: all four n count
    assert scores.per_clip_cider["dog"] == pytest.approx(750)  # 3 words have no 4-gram
    assert scores.bleu_1 == pytest.approx(1, abs=1e-6)
    assert scores.rouge_l == pytest.approx(1)


def test_an_empty_prediction_scores_zero_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    predictions = {**PREDICTIONS, "rain": "", "train": " ... "}
    scores = score(predictions, REFERENCES, tokenizer="simple", metrics=("cider", "bleu", "rouge"))
    assert scores.empty_predictions == 2
    assert scores.per_clip_cider["rain"] == scores.per_clip_cider["train"] == 0
    assert scores.per_clip_cider["dog"] > 0
    assert capsys.readouterr().out == ""  # pycocoevalcap's BLEU prints unless told not to


def test_all_predictions_empty_is_a_score_of_zero() -> None:
    scores = score(
        dict.fromkeys(REFERENCES, ""),
        REFERENCES,
        tokenizer="simple",
        metrics=("cider", "bleu", "rouge"),
    )
    assert (scores.cider, scores.bleu_1, scores.bleu_4, scores.rouge_l) == (0, 0, 0, 0)
    assert scores.cider_interval == (0, 0)
    assert scores.empty_predictions == 3


def test_scores_are_json_and_tell_what_was_not_asked_for() -> None:
    scores = score(PREDICTIONS, REFERENCES, tokenizer="simple", metrics=CIDER)
    plain = json.loads(json.dumps(scores.to_dict()))
    assert plain == scores.to_dict()
    assert plain["cider_interval"] == list(scores.cider_interval)
    assert (plain["n_clips"], plain["n_references"]) == (3, 6)
    for name in ("bleu_1", "bleu_4", "meteor", "meteor_reason", "rouge_l"):
        assert plain[name] is None


# ---- METEOR --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_meteor_is_pycocoevalcaps(java: None) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    # An empty caption and METEOR's own field separator must not confuse the conversation.
    predictions = {**PREDICTIONS, "rain": "", "train": "a \u65e5\u672c ||| train"}
    scores = score(predictions, REFERENCES, tokenizer="simple")
    tokens = tokenize({key: [text] for key, text in predictions.items()}, "simple")
    theirs = Meteor()
    expected, _ = theirs.compute_score(tokenize(REFERENCES, "simple"), tokens)
    theirs.meteor_p.stdout.close()  # it leaves them open, and here a leak is an error
    theirs.meteor_p.stderr.close()
    assert scores.meteor_reason is None
    assert scores.meteor == pytest.approx(expected)
    assert 0.1 < expected < 1


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('could not reserve memory')", r"METEOR failed: .*could not reserve"),
        ("import time; time.sleep(60)", r"METEOR failed: no answer within 0.5 s"),
        ("print('a,b', flush=True); import time; time.sleep(60)", r"METEOR failed"),
        (
            "while input(): print('nan', 'nan', 'nan', 'nan', sep=chr(10), flush=True)",
            r"METEOR failed: its score is nan, which",
        ),
    ],
)
def test_a_failing_meteor_is_none_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(meteor_module, "java_available", lambda: True)
    monkeypatch.setattr(meteor_module, "JAVA", (sys.executable, "-c", program))
    value, said = meteor(REFERENCES, PREDICTIONS, timeout_seconds=0.5)
    assert value is None
    assert said is not None
    assert re.match(reason, said)


def test_meteor_that_cannot_start_or_has_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_module, "java_available", lambda: False)
    scores = score(PREDICTIONS, REFERENCES, tokenizer="simple")
    assert scores.meteor is None
    assert scores.meteor_reason == "METEOR needs Java, and `java -version` does not run here"
    assert scores.bleu_1 is not None
    monkeypatch.setattr(meteor_module, "java_available", lambda: True)
    monkeypatch.setattr(meteor_module, "JAVA", ("no-such-java",))
    value, reason = meteor(REFERENCES, PREDICTIONS)
    assert value is None
    assert str(reason).startswith("METEOR did not start")


# ---- undefined scores ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({}, "the split is empty"),
        ({"a": ["a dog"]}, r"CIDEr is undefined for a single clip \('a'\).*whole split at once"),
        ({"a": ["a dog"], "b": []}, "clip 'b' has no reference"),
        ({"a": ["a dog"], "b": "a cat"}, "references of clip 'b' must be a list of captions"),
        ({"a": ["a dog"], "b": [None]}, "a reference of clip 'b' is not text but None"),
        ({"a": ["a dog"], "b": ["a cat", " ..."]}, "clip 'b' has a reference without a word"),
        ({"a": ["a dog", "a cat"], "b": ["A cat!", "a dog"]}, r"all 2 clips have the same ref"),
    ],
)
def test_references_that_cannot_be_scored(references: dict[str, list[str]], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Scorer(references, "simple")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rain": None}, "the prediction of clip 'rain' is not text but None"),
        ({"cat": "a cat"}, r"1 predictions have no clip \(first: 'cat'\)"),
    ],
)
def test_predictions_that_cannot_be_scored(change: dict[str, str], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        score({**PREDICTIONS, **change}, REFERENCES, tokenizer="simple", metrics=CIDER)


def test_missing_predictions_are_counted_and_the_first_is_named() -> None:
    with pytest.raises(MetricError, match=r"2 clips have no prediction \(first: 'rain'\)$"):
        score({"dog": "a dog"}, REFERENCES, tokenizer="simple", metrics=CIDER)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("cider", "blue"), r"unknown metric 'blue'; did you mean 'bleu'\?; known: cider, bleu"),
        (("bleu",), r"metrics must hold 'cider'.*got \['bleu'\]"),
    ],
)
def test_metrics_that_do_not_exist(metrics: tuple[str, ...], message: str) -> None:
    with pytest.raises(MetricError, match=message):
        score(PREDICTIONS, REFERENCES, tokenizer="simple", metrics=metrics)

"""Floors and controls: commonest and nearest caption, shuffled pairs, event words, diversity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import MetricError
from safe.evaluation.floors import (
    caption_diversity,
    commonest_caption,
    event_word_recall,
    nearest_neighbour,
    shuffle_pairs,
)


def test_commonest_caption_ignores_case_and_punctuation_and_keeps_the_first_spelling() -> None:
    captions = ["Rain falls", "A dog\r\nbarks.", "a dog barks", "rain"]
    assert commonest_caption(captions) == "A dog barks."
    assert commonest_caption(["b", "a", "a", "b"]) == "b"
    with pytest.raises(MetricError, match="there are no training captions"):
        commonest_caption([])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 600), st.integers(0, 99))
def test_nearest_neighbour_is_the_plain_loop(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(n, 7)), rng.normal(size=(m, 7))
    captions = [f"caption {i}" for i in range(n)]
    cosine = [[t @ r / np.linalg.norm(t) / np.linalg.norm(r) for r in train] for t in test[:20]] + [
        [t @ r / np.linalg.norm(r) for r in train] for t in test[20:]
    ]
    expected = [captions[int(np.argmax(row))] for row in cosine]
    assert nearest_neighbour(train, captions, test) == expected


def test_nearest_neighbour_compares_directions_not_lengths() -> None:
    train = np.array([[1.0, 0.0], [100.0, 100.0]])
    assert nearest_neighbour(train, ["east", "north-east"], [[0.1, 0.01]]) == ["east"]


@pytest.mark.parametrize(
    ("train", "captions", "test", "message"),
    [
        (np.ones((2, 3)), ["a"], np.ones((1, 3)), "got 2 embeddings and 1 captions"),
        (np.ones((0, 3)), [], np.ones((1, 3)), "got 0 embeddings and 0 captions"),
        (np.ones((1, 3)), ["a"], np.ones((1, 4)), "differ in width: 3 and 4"),
        (np.ones(3), ["a"], np.ones((1, 3)), r"train_embeddings must be \[clips, width\]"),
        (np.ones((1, 3)), ["a"], np.zeros((1, 3)), r"test_embeddings\[0\] is zero or not finite"),
        (np.full((1, 3), np.nan), ["a"], np.ones((1, 3)), r"train_embeddings\[0\] is zero or not"),
    ],
)
def test_embeddings_without_a_neighbour(
    train: np.ndarray, captions: list[str], test: np.ndarray, message: str
) -> None:
    with pytest.raises(MetricError, match=message):
        nearest_neighbour(train, captions, test)


def _is_possible(labels: list[set[int]]) -> bool:
    """Try every permutation: the definition, not the algorithm."""
    n = len(labels)
    return any(
        all(i != j and not labels[i] & labels[j] for i, j in enumerate(order))
        for order in itertools.permutations(range(n))
    )


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.sets(st.integers(0, 4), max_size=2), min_size=1, max_size=6))
def test_pairs_are_found_exactly_when_they_exist(labels: list[set[int]]) -> None:
    if not _is_possible(labels):
        with pytest.raises(MetricError, match="too many have the same content"):
            shuffle_pairs(labels, seed=1)
        return
    pairs = shuffle_pairs(labels, seed=1).tolist()
    assert sorted(pairs) == list(range(len(labels)))
    assert all(i != j and not labels[i] & labels[j] for i, j in enumerate(pairs))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=200), st.integers(0, 9))
def test_pairs_avoid_the_same_key_if_no_key_has_more_than_half(keys: list[int], seed: int) -> None:
    if max(map(keys.count, keys)) * 2 > len(keys):
        with pytest.raises(MetricError, match="too many have the same content"):
            shuffle_pairs(keys, seed)
        return
    pairs = shuffle_pairs(keys, seed)
    assert sorted(pairs.tolist()) == list(range(len(keys)))
    assert all(keys[i] != keys[j] for i, j in enumerate(pairs))


def test_pairs_depend_on_the_seed_alone_and_reach_everybody() -> None:
    keys = [f"clip {n}" for n in range(8)]
    assert (shuffle_pairs(keys, 1) == shuffle_pairs(keys, 1)).all()
    draws = np.array([shuffle_pairs(keys, seed) for seed in range(200)])
    assert all(set(draws[:, clip]) == set(range(8)) - {clip} for clip in range(8))


def test_a_text_key_is_one_label_and_a_tuple_is_several() -> None:
    assert sorted(shuffle_pairs(["ab", "bc"]).tolist()) == [0, 1]  # no shared letters looked at
    with pytest.raises(MetricError, match=r"the 2 clips cannot all hear another clip's audio"):
        shuffle_pairs([("x", "rain"), ("y", "rain")])
    with pytest.raises(MetricError, match="use more varied clips"):
        shuffle_pairs(["alone"])


def test_event_word_recall_counts_agreed_content_words() -> None:
    references = {
        "1": ["A dog barks and a man speaks", "a dog barking while a man speaks", "The dog barks"],
        "2": ["rain falls on a roof"],
        "3": ["wind", "birds"],  # nothing agreed
    }
    predictions = {"1": "The DOG barks.", "2": "rain", "3": "wind"}
    # Clip 1: dog, barks, man, speaks; clip 2 has one reference: rain, falls, roof.
    assert event_word_recall(predictions, references) == pytest.approx((2 + 1) / (4 + 3))
    assert event_word_recall(predictions, references, words={"dog", "roof"}) == 0.5
    silent = dict.fromkeys(references, "")
    assert event_word_recall(silent, references) == 0


def test_event_word_recall_errors() -> None:
    with pytest.raises(MetricError, match="no word is shared by two references"):
        event_word_recall({"1": "a"}, {"1": ["the", "wind"]})
    with pytest.raises(MetricError, match="1 differ, first '2'"):
        event_word_recall({"1": "a"}, {"1": ["a"], "2": ["b"]})


def test_caption_diversity() -> None:
    found = caption_diversity(["A dog barks", "a dog barks.", "rain", ""])
    assert found.distinct == 0.75
    assert found.vocabulary == 4
    assert found.commonest_share == 0.5
    assert found.commonest == "A dog barks"
    with pytest.raises(MetricError, match="there are no predictions"):
        caption_diversity([])


def test_people_on_audiocaps_are_varied(audiocaps_test: dict[str, list[str]]) -> None:
    found = caption_diversity([texts[0] for texts in audiocaps_test.values()])
    assert found.distinct > 0.98
    assert found.vocabulary == 970
    others = {key: texts[1:] for key, texts in audiocaps_test.items()}
    recall = event_word_recall({key: texts[0] for key, texts in audiocaps_test.items()}, others)
    assert recall == pytest.approx(0.4214, abs=1e-4)

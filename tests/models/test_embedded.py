"""The shipped weights: they load with the real classes and do what their model card says."""

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    LlavaForConditionalGeneration,
)

from safe.data.synthetic import render, synthetic_scene
from safe.data.synthetic_events import EVENTS
from safe.models.prompts import prompt_in

EMBEDDED = Path(__file__).resolve().parents[2] / "safe" / "embedded"
CARD = (EMBEDDED / "MODEL_CARD.md").read_text(encoding="utf-8")
# Bounds, each with what was measured when the weights were made.
BUILT_IN_BOUND = 1.8  # nats/token; 1.57
UNSEEN_BOUND = 2.2  # nats/token; 1.78, and 7.38 with the words in reverse order
HELD_OUT_BOUND = 3.4  # nats/token; 3.13
BFLOAT16_GAP = 0.02  # nats/token; 0.0025
COSINE_BOUND = 0.85  # 0.68, engine and wind; untrained weights give 0.998
NEIGHBOUR_BOUND = 0.7  # of events; 0.80 with 600 known clips, 0.88 with 1600

# Captions in the words of AudioCaps that are in no training file: written for this test.
UNSEEN = (
    "A man speaks while a dog barks in the distance",
    "Rain falling followed by thunder and people talking",
    "A woman laughs and a baby cries",
    "An engine starts and then revs loudly",
)


@pytest.fixture(scope="module")
def backbone() -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration.from_pretrained(
        EMBEDDED / "backbone", dtype=torch.float32
    )
    assert isinstance(model, LlavaForConditionalGeneration)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / "backbone")


@pytest.fixture(scope="module")
def encoder() -> ClapAudioModelWithProjection:
    return ClapAudioModelWithProjection.from_pretrained(EMBEDDED / "clap").eval()


@pytest.fixture(scope="module")
def extractor() -> ClapFeatureExtractor:
    return ClapFeatureExtractor.from_pretrained(EMBEDDED / "clap")


def prompt() -> str:
    text = prompt_in(EMBEDDED / "backbone")
    assert text is not None
    return text


@torch.no_grad()
def loss_of(model: LlavaForConditionalGeneration, tokenizer: Any, text: str) -> tuple[float, int]:
    """Summed cross entropy (nats) of a caption and </s> after the prompt, and its tokens."""
    start = tokenizer(prompt()).input_ids
    caption = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([start + caption])).logits[0].double()
    rows = logits[len(start) - 1 : -1].log_softmax(-1)
    return -float(rows[range(len(caption)), caption].sum()), len(caption)


def per_token(losses: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in losses) / sum(count for _, count in losses)


@torch.no_grad()
def embed(encoder: Any, extractor: Any, scenes: list[Any]) -> Tensor:
    waves = [render(scene).astype(np.float32) / 32768 for scene in scenes]
    features = extractor(waves, sampling_rate=16_000, return_tensors="pt")["input_features"]
    return encoder(input_features=features.float()).audio_embeds


def test_files_are_those_of_the_card_and_small() -> None:
    listed = dict(re.findall(r"^\| (\S+/\S+) \| \d+ \| ([0-9a-f]{64}) \|$", CARD, re.MULTILINE))
    files = [path for part in ("backbone", "clap") for path in (EMBEDDED / part).iterdir()]
    found = {
        path.relative_to(EMBEDDED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert found == listed
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 20e6


def test_backbone_is_a_small_grouped_query_llava(backbone: LlavaForConditionalGeneration) -> None:
    text = backbone.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (192, 10, 6)
    assert (text.num_key_value_heads, text.head_dim, text.vocab_size) == (2, 32, 4096)
    assert len(backbone.get_decoder().layers) == 10
    tied = backbone.get_input_embeddings().weight.data_ptr() == backbone.lm_head.weight.data_ptr()
    assert tied
    # The class's own inputs work: an image of 32 x 32 fills four <image> positions.
    image = torch.full((1, 4), backbone.config.image_token_index)
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(
            input_ids=torch.cat([image, torch.ones(1, 3).long()], 1), pixel_values=pixels
        ).logits
    assert torch.isfinite(logits).all()


def test_tokenizer_is_lossless_and_splits_at_the_prompt(tokenizer: Any) -> None:
    assert tokenizer("A dog").input_ids[0] == tokenizer.bos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.convert_tokens_to_ids("<image>") == 3
    for text in (*UNSEEN, "Müller's  dog 🐕, 12%\tquiet"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        together = tokenizer(prompt() + text).input_ids
        assert together == tokenizer(prompt()).input_ids + ids


def test_backbone_knows_captions(backbone: LlavaForConditionalGeneration, tokenizer: Any) -> None:
    built_in = [synthetic_scene("test", index).captions[0] for index in range(40)]
    known = per_token([loss_of(backbone, tokenizer, text) for text in built_in])
    assert known < BUILT_IN_BOUND
    unseen = per_token([loss_of(backbone, tokenizer, text) for text in UNSEEN])
    shuffled = [" ".join(reversed(text.split())) for text in UNSEEN]
    nonsense = per_token([loss_of(backbone, tokenizer, text) for text in shuffled])
    assert unseen < UNSEEN_BOUND
    assert nonsense > unseen + 2  # word order matters: it is a language model, not a word list


def test_held_out_captions_of_people(
    backbone: LlavaForConditionalGeneration, tokenizer: Any, shared: Path
) -> None:
    # The val split took no part in training.
    from safe.data.manifests import load_split

    clips = load_split(shared / "data" / "audiocaps", "val")[:60]
    losses = [loss_of(backbone, tokenizer, clip.captions[0]) for clip in clips]
    assert per_token(losses) < HELD_OUT_BOUND


def test_backbone_speaks_fluently_without_hearing(
    backbone: LlavaForConditionalGeneration, tokenizer: Any
) -> None:
    inputs = tokenizer(prompt(), return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    greedy = backbone.generate(**inputs, max_new_tokens=30, do_sample=False)[0, start:]
    assert greedy[-1] == tokenizer.eos_token_id
    torch.manual_seed(1)
    drawn = backbone.generate(
        **inputs, max_new_tokens=40, do_sample=True, temperature=0.7, num_return_sequences=12
    )[:, start:]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in (greedy, *drawn)]
    for text in texts:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.'-]*", text), text
        assert len(text.split()) >= 2, text
    assert len(texts[0].split()) >= 4, texts[0]
    assert len(set(texts)) >= 10, "it must not have one sentence only"


def test_bfloat16_says_the_same_words(tokenizer: Any) -> None:
    # The file is bfloat16, so only arithmetic differs.
    low = LlavaForConditionalGeneration.from_pretrained(EMBEDDED / "backbone")
    assert low.dtype == torch.bfloat16
    high = LlavaForConditionalGeneration.from_pretrained(EMBEDDED / "backbone", dtype=torch.float32)
    for text in UNSEEN:
        rough, exact = (per_token([loss_of(m.eval(), tokenizer, text)]) for m in (low, high))
        assert abs(rough - exact) < BFLOAT16_GAP


def test_different_events_have_different_embeddings(
    encoder: ClapAudioModelWithProjection, extractor: ClapFeatureExtractor
) -> None:
    scenes = []
    for index in range(2000):
        scene = synthetic_scene("probe", index + 10_000)
        if scene.relation == "single" and scene.events[0] not in {s.events[0] for s in scenes}:
            scenes.append(scene)
    assert len(scenes) == len(EVENTS)
    embeds = torch.nn.functional.normalize(embed(encoder, extractor, scenes), dim=1)
    assert embeds.shape == (28, 512)
    cosine = embeds @ embeds.T - 2 * torch.eye(28)
    assert float(cosine.max()) < COSINE_BOUND


def test_neighbours_share_events(
    encoder: ClapAudioModelWithProjection, extractor: ClapFeatureExtractor
) -> None:
    def some(split: str, start: int, count: int) -> tuple[Tensor, list[set[str]]]:
        scenes = [synthetic_scene(split, start + index) for index in range(count)]
        parts = [embed(encoder, extractor, scenes[k : k + 50]) for k in range(0, count, 50)]
        normal = torch.nn.functional.normalize(torch.cat(parts), dim=1)
        return normal, [set(scene.events) for scene in scenes]

    known, known_events = some("train", 0, 600)
    fresh, fresh_events = some("probe", 20_000, 56)
    nearest = (fresh @ known.T).argmax(1).tolist()
    shared = sum(len(known_events[k] & e) for k, e in zip(nearest, fresh_events, strict=True))
    assert shared / sum(map(len, fresh_events)) >= NEIGHBOUR_BOUND


def test_encoding_is_quick_and_deterministic(
    encoder: ClapAudioModelWithProjection, extractor: ClapFeatureExtractor
) -> None:
    scene = [synthetic_scene("test", 0)]
    first = embed(encoder, extractor, scene)
    wave = render(scene[0]).astype(np.float32) / 32768
    start = time.process_time()  # of this process alone: other work on the machine does not count
    for _ in range(5):
        features = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            again = encoder(input_features=features).audio_embeds
    assert (time.process_time() - start) / 5 < 0.1  # 0.007 s measured
    assert torch.equal(first, again)


def test_help_needs_no_heavy_import(repo_root: Path, tmp_path: Path) -> None:
    script = repo_root / "scripts" / "build_embedded.py"
    shown = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--captions" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, script, "--captions", "absent.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "--captions: no such file: absent.csv" in wrong.stderr


@pytest.mark.slow
def test_the_build_is_reproducible(repo_root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "captions.csv"
    words = "\n".join(f"a{index},A dog barks {index} times" for index in range(700))
    manifest.write_text(f"youtube_id,caption\n{words}\n")
    script = repo_root / "scripts" / "build_embedded.py"
    for name in ("one", "two"):
        output = tmp_path / name
        subprocess.run(
            [sys.executable, script, "--steps", "1", "--captions", manifest, "--output", output],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert Path("MODEL_CARD.md") in files
    for file in files - {Path("MODEL_CARD.md")}:  # the card holds the command, with its folder
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    LlavaForConditionalGeneration.from_pretrained(tmp_path / "one" / "backbone")

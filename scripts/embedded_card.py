"""The model card of the embedded weights, written from what was measured while building them."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

from embedded_backbone import BATCH, HELD_OUT, PROMPT, SYNTHETIC_SHARE, BackboneResult
from embedded_encoder import EncoderResult

from safe.data.synthetic_events import EVENTS

_CARD = """\
# Embedded weights

Two small models that come with the package, so that everything runs on a laptop without a
download. They are real `transformers` classes with few parameters. Written by
`scripts/build_embedded.py`; do not edit.

    {command}

## backbone: `LlavaForConditionalGeneration`, {backbone_parameters:,} parameters

Ten Llama layers (hidden size 192, 6 query heads, 2 key/value heads, head width 32, MLP 512, RoPE,
tied embeddings, 512 positions), a byte-level BPE of {vocabulary:,} tokens, and a vision tower of
random weights that is only there because the class has one. Saved in bfloat16; load it in bfloat16
or float32.

- **Trained on** {captions:,} different captions of the training manifests below and
  {synthetic_captions:,} captions of built-in clips ({share:.0%}), each as
  `<s>{prompt}CAPTION</s>`; {steps:,} steps of {batch} captions, {tokens:,} caption tokens. The
  manifests' text is the only thing taken from them:
{sources}
- **Loss** (nats/token, caption and `</s>`): training {train_loss:.3f} (running mean); on captions
  of unseen built-in clips {synthetic_loss:.3f}; on {held_out_count} captions held out of the
  manifests {held_out_loss}.
- **It is** a language model of sound captions that speaks fluently without hearing anything: a
  frozen partner for an audio adapter.
- **It is not** a captioner, an assistant or a vision model. It has never been given a sound, nor
  which caption belongs to which. What it says without an adapter:
{samples}

## clap: `ClapAudioModelWithProjection`, {encoder_parameters:,} parameters

HTSAT in three stages of two layers (width 48, 96, 192; windows of 4 x 4 patches of 8 x 8) on a
log-mel image: 16 kHz, 64 bands from 50 to 8000 Hz, one frame per 16 ms, four seconds. A shorter
clip is padded with silence; a longer one must be cropped by the caller. 512-wide embeddings, of
which only the direction was trained: normalise them. Saved in float32.

- **Trained on** {clips:,} built-in clips of {events} kinds of events, from random streams of
  their own (split "pretrain"; no clip of train, val or test is among them), {encoder_steps:,}
  steps of 32, to name the events and which came first. The heads were thrown away.
- **Loss** {encoder_loss:.3f} nats/clip (running mean, sum of the three heads).
- **Measured** on {probe} unseen clips (split "probe"), by a linear readout fitted on the train
  split: {recall:.1%} of the events found, {order:.1%} of sequences put in the right order (chance
  50%); the nearest train clip shares {neighbour:.1%} of the events.
- **It is** an encoder for the built-in events. **It is not** a general audio encoder: real
  recordings are outside what it has heard. Use LAION's CLAP or aiSFX for them.

## Licences

AudioCaps' captions: MIT (Kim et al., NAACL 2019). The clips are computed. The weights are under
the licence of this package.

## Files

| file | bytes | SHA-256 |
|---|---|---|
{files}

Built with Python {python}, {versions}, one thread, seed 0.
"""


def model_card(
    command: str,
    manifests: list[Path],
    backbone: BackboneResult,
    encoder: EncoderResult,
    sums: dict[str, tuple[int, str]],
) -> str:
    """Return the card as Markdown; `sums` maps file names to (bytes, SHA-256)."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return _CARD.format(
        command=command,
        backbone_parameters=backbone.parameters,
        vocabulary=backbone.vocabulary,
        captions=backbone.captions,
        synthetic_captions=backbone.synthetic_captions,
        share=SYNTHETIC_SHARE,
        prompt=PROMPT.replace("\n", "\\n"),
        steps=backbone.steps,
        batch=BATCH,
        tokens=backbone.tokens,
        sources=_sources(manifests),
        train_loss=backbone.train_loss,
        held_out_count=HELD_OUT if manifests else "no",
        held_out_loss="-" if backbone.held_out_loss is None else f"{backbone.held_out_loss:.3f}",
        synthetic_loss=backbone.synthetic_loss,
        samples="\n".join(f"    - {text}" for text in backbone.samples),
        encoder_parameters=encoder.parameters,
        clips=encoder.clips,
        events=len(EVENTS),
        encoder_steps=encoder.steps,
        encoder_loss=encoder.train_loss,
        probe=encoder.probe_clips,
        recall=encoder.event_recall,
        order=encoder.order_accuracy,
        neighbour=encoder.neighbour_recall,
        files="\n".join(f"| {name} | {size} | {digest} |" for name, (size, digest) in sums.items()),
        python=platform.python_version(),
        versions=", ".join(f"{name} {version(name)}" for name in packages),
    )


def _sources(manifests: list[Path]) -> str:
    if not manifests:
        return "    - no manifest was given: built-in captions only"
    return "\n".join(
        f"    - {path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in manifests
    )

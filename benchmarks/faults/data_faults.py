"""Faults of batches: labels, masks, clips."""

import torch
from torch import Tensor

from benchmarks.faults.bench import LONG, Bench
from benchmarks.faults.registry import TRAINED, fault
from safe.models.safe_model import IGNORED
from safe.training.batches import Batch


@fault("LLaVA #1166: loss 0.0, tokenization mismatch (ignored)", "SP601 text")
def all_labels_ignored(bench: Bench) -> None:
    """Every label is -100."""
    bench.change_batches(labels=lambda b: torch.full_like(b.labels, IGNORED))


@fault("transformers #47394: GitForCausalLM shifted the labels twice", "SP603 text")
def labels_shifted(bench: Bench) -> None:
    """Labels are shifted before the model, which shifts them again."""

    def shifted(batch: Batch) -> Tensor:
        last = torch.full_like(batch.labels[:, :1], IGNORED)
        return torch.cat([batch.labels[:, 1:], last], dim=1)

    bench.change_batches(labels=shifted)


@fault("neulab/prompt2model #168: the loss was taken on the prompt, too", "SP602 text")
def prompt_supervised(bench: Bench) -> None:
    """The prompt's tokens have labels."""
    bench.change_batches(labels=lambda b: b.input_ids.masked_fill(b.attention_mask == 0, IGNORED))


@fault("01-ai/Yi #110: no ignore index for padding", "SP605 text")
def padding_supervised(bench: Bench) -> None:
    """Padding has labels."""
    bench.change_batches(labels=lambda b: torch.where(b.attention_mask == 0, b.input_ids, b.labels))


@fault(
    "InseeFrLab/torchTextClassifiers PR #92: attention mask inverted", "SP605 text", "SP606 text"
)
def text_mask_inverted(bench: Bench) -> None:
    """The attention mask is 1 for padding and 0 for text."""
    bench.change_batches(attention_mask=lambda b: 1 - b.attention_mask)


@fault("tatsu-lab/stanford_alpaca #126: no end of text in training", "SP604 text")
def captions_cut(bench: Bench) -> None:
    """The captions are cut to four tokens, without an end."""

    def cut(batch: Batch) -> Tensor:
        count = (batch.labels != IGNORED).cumsum(1)
        return batch.labels.masked_fill(count > 4, IGNORED)

    bench.change_batches(labels=cut)


@fault("transformers PR #32386: both sides of the mask have zeros", "SP612 text")
def padding_on_both_sides(bench: Bench) -> None:
    """Half of the rows are padded on the left."""

    def rolled(tensor: Tensor, batch: Batch) -> Tensor:
        out = tensor.clone()
        for row in range(0, len(out), 2):
            missing = int((batch.attention_mask[row] == 0).sum())
            out[row] = out[row].roll(missing)
        return out

    lengthen(bench)
    bench.change_batches(
        input_ids=lambda b: rolled(b.input_ids, b),
        attention_mask=lambda b: rolled(b.attention_mask, b),
        labels=lambda b: rolled(b.labels, b),
    )


def lengthen(bench: Bench) -> None:
    """Pad every row by three more positions."""

    def wider(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 3), value=value)

    bench.change_batches(
        input_ids=lambda b: wider(b.input_ids, 0),
        attention_mask=lambda b: wider(b.attention_mask, 0),
        labels=lambda b: wider(b.labels, IGNORED),
    )


@fault(
    "sgl-project/sglang PR #32404: an embedding cache gave another item's features", "SP609 signal"
)
def same_embedding_for_every_clip(bench: Bench) -> None:
    """The loader returns the first clip's embedding for all."""
    first = bench.batches[0].audio[:1]
    bench.change_batches(audio=lambda b: first.expand_as(b.audio).clone())


@fault("textbook: a batch of one that is broadcast over the texts", "SP609 signal")
def first_clip_expanded(bench: Bench) -> None:
    """Every text of a batch gets the clip of its first text; batches differ."""
    bench.change_batches(audio=lambda b: b.audio[:1].expand_as(b.audio).clone())


@fault(
    "CPJKU/dcase2024_task1_baseline #2: files seem empty without an audio backend", "SP608 signal"
)
def silent_audio(bench: Bench) -> None:
    """Every embedding is zeros."""
    bench.change_batches(audio=lambda b: torch.zeros_like(b.audio))


@fault("kitzeslab/opensoundscape #794: a mel spectrogram of -inf", "SP607 signal")
def infinite_embedding(bench: Bench) -> None:
    """One embedding has an infinite element."""
    bench.batches[0].audio[1, 3] = float("inf")


@fault(
    "diffusers #14430: cached latents paired with other captions by shuffling",
    "SP408 model",
    **TRAINED,
)
def clips_shuffled_against_texts(bench: Bench) -> None:
    """The embeddings were shuffled, the captions were not; training went on."""
    dataset = bench.trainer.dataset
    order = torch.randperm(len(dataset.embeddings)).numpy()
    dataset.embeddings = dataset.embeddings[order]
    bench.train(LONG)
    bench.batches = [dataset.batch(range(i, i + 8)) for i in range(0, 32, 8)]


@fault(
    "textbook: a mask made for ids[:, 1:] is one shorter, and padded back at an end",
    "SP615 text",
    "SP605 text",
)
def text_mask_shifted_left(bench: Bench) -> None:
    """The attention mask begins one place early: the last token of each text is masked."""
    lengthen(bench)
    bench.change_batches(attention_mask=lambda b: b.attention_mask.roll(-1, 1))


@fault("textbook: a mask made before a start token was added, and padded back", "SP615 text")
def text_mask_shifted_right(bench: Bench) -> None:
    """The attention mask begins one place late: the first token is masked, padding is not."""
    lengthen(bench)
    bench.change_batches(attention_mask=lambda b: b.attention_mask.roll(1, 1))

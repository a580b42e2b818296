"""The embedded language model: small, LLaVA-class, fluent in captions, and deaf.

It learns one thing: what captions look like. No sound enters, and nothing says which caption
belongs to which clip.
"""

import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from safe.data.synthetic import synthetic_scene

# It ends in a line break, not in a space, so that prompt and caption fall into the same tokens
# whether they are tokenized together or apart (byte-level BPE glues a space to the next word).
PROMPT = "Describe the sound:\n"
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
VOCABULARY = 4096
HELD_OUT = 500
# Synthetic captions per given one: enough to know the words of the built-in clips, few enough
# that the language stays that of people.
SYNTHETIC_SHARE = 0.3
BATCH = 32
PEAK_LR = 2e-3
WARMUP_STEPS = 100

Say = Callable[[str], None]


@dataclass
class BackboneResult:
    """What the model card says about the language model."""

    parameters: int
    vocabulary: int
    captions: int
    synthetic_captions: int
    steps: int
    tokens: int
    train_loss: float
    held_out_loss: float | None
    synthetic_loss: float
    samples: list[str]


def read_captions(manifests: list[Path]) -> list[str]:
    """Return the `caption` column of CSV manifests, without repetitions, in order."""
    found: dict[str, None] = {}
    for manifest in manifests:
        with manifest.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found[" ".join(row["caption"].split())] = None
    found.pop("", None)
    return list(found)


def synthetic_captions(split: str, count: int) -> list[str]:
    """Return captions of built-in clips, without making the sounds."""
    return [synthetic_scene(split, index).captions[0] for index in range(count)]


def train_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the captions; it puts <s> in front, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The prompt is repeated so that its words become whole tokens.
    bpe.train_from_iterator(captions + [PROMPT] * (len(captions) // 20 + 2), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return an untrained LLaVA: ten Llama layers of width 192 and a token vision tower."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=10,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def batches(
    rows: list[list[int]], size: int, generator: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tokens, mask), both [B,T], for ever: epochs in random order, bucketed by length."""
    while True:
        order = list(range(len(rows)))
        generator.shuffle(order)
        pool = size * 50
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda i: len(rows[i]))
            groups = [part[k : k + size] for k in range(0, len(part), size)]
            generator.shuffle(groups)
            for group in groups:
                yield pad([rows[i] for i in group])


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return tokens and mask [B,T], padded on the right (causal attention never looks there)."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = True
    return tokens, mask


def caption_loss(
    model: LlavaForConditionalGeneration, tokens: Tensor, mask: Tensor, prompt_length: int
) -> tuple[Tensor, int]:
    """Return the summed cross entropy (nats) over caption tokens and </s>, and their number."""
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    wanted = mask[:, prompt_length:]
    logits = model.lm_head(hidden[:, prompt_length - 1 : -1][wanted]).float()
    loss = nn.functional.cross_entropy(logits, tokens[:, prompt_length:][wanted], reduction="sum")
    return loss, int(wanted.sum())


@torch.no_grad()
def mean_loss(
    model: LlavaForConditionalGeneration, rows: list[list[int]], prompt_length: int
) -> float:
    """Return the loss per caption token (nats/token) over rows of token ids."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), 100):
        tokens, mask = pad(rows[start : start + 100])
        loss, number = caption_loss(model, tokens, mask, prompt_length)
        total, count = total + float(loss), count + number
    model.train()
    return total / count


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero, as a factor of the peak."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    named = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in named if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def train(
    model: LlavaForConditionalGeneration,
    rows: list[list[int]],
    prompt_length: int,
    steps: int,
    say: Say,
) -> tuple[float, int]:
    """Train the decoder in place; returns the last running loss (nats/token) and tokens seen."""
    decoder = model.get_decoder()
    model.set_attn_implementation("eager")  # the fused kernel's bfloat16 backward is slow on CPUs
    model.train()
    model.requires_grad_(False)
    decoder.requires_grad_(True)
    optimizer = optimizer_for(decoder, PEAK_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    stream = batches(rows, BATCH, random.Random(0))
    running, seen = math.nan, 0
    for step in range(1, steps + 1):
        tokens, mask = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, count = caption_loss(model, tokens, mask, prompt_length)
        (loss / count).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value, seen = float(loss.detach()) / count, seen + count
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        if step % 100 == 0 or step == steps:
            say(f"backbone: step {step}/{steps}, train loss {running:.3f} nats/token")
    model.set_attn_implementation("sdpa")
    return running, seen


@torch.no_grad()
def sample(model: Any, tokenizer: PreTrainedTokenizerFast, count: int) -> list[str]:
    """Return one greedy caption and `count - 1` sampled ones, made without any sound."""
    model.eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    greedy = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    torch.manual_seed(0)
    drawn = model.generate(
        **prompt, max_new_tokens=30, do_sample=True, top_p=0.9, num_return_sequences=count - 1
    )
    start = prompt["input_ids"].shape[1]
    return [
        str(tokenizer.decode(row[start:], skip_special_tokens=True)) for row in [*greedy, *drawn]
    ]


def build_backbone(manifests: list[Path], output: Path, steps: int, say: Say) -> BackboneResult:
    """Train tokenizer and language model and save both, in bfloat16, to a folder."""
    human = read_captions(manifests)
    random.Random(0).shuffle(human)
    held_out, human = human[:HELD_OUT], human[HELD_OUT:]
    made = synthetic_captions("pretrain", int(len(human) * SYNTHETIC_SHARE) or 10_000)
    say(f"backbone: {len(human)} captions, {len(held_out)} held out, {len(made)} synthetic")
    tokenizer = train_tokenizer(human + made)
    torch.manual_seed(0)
    model: Any = new_model(tokenizer)
    prompt = tokenizer(PROMPT)["input_ids"]

    def encode(texts: list[str]) -> list[list[int]]:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*prompt, *row, tokenizer.eos_token_id] for row in ids]

    train_loss, seen = train(model, encode(human + made), len(prompt), steps, say)
    model = model.to(torch.bfloat16)
    model.generation_config.update(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "safe_prompt.json").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    model = model.float()  # the saved, rounded weights are the ones that are measured
    probe = synthetic_captions("probe", HELD_OUT)
    return BackboneResult(
        parameters=sum(p.numel() for p in model.parameters()),
        vocabulary=len(tokenizer),
        captions=len(human),
        synthetic_captions=len(made),
        steps=steps,
        tokens=seen,
        train_loss=train_loss,
        held_out_loss=mean_loss(model, encode(held_out), len(prompt)) if held_out else None,
        synthetic_loss=mean_loss(model, encode(probe), len(prompt)),
        samples=sample(model, tokenizer, 9),
    )

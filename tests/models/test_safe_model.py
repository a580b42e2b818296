"""SAFEModel: parity without audio, hooks, gate, graph, generation."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ModelError
from safe.models.safe_model import IGNORED, SAFEModel

KINDS = ["llava", "causal"]
DTYPES = [torch.float32, torch.bfloat16]


def hooks(model):
    return [len(layer._forward_hooks) for layer in model.layers.values()]


def bf16_if(on):
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


def labelled(ids, mask):
    return ids.masked_fill(mask == 0, IGNORED).index_fill(1, torch.tensor([0, 1, 2]), IGNORED)


# ---- parity with the untouched backbone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_silence_is_the_untouched_backbone_bit_for_bit(
    make_model, make_backbone, text_batch, audio_batch, kind, dtype, autocast, checkpointing
):
    ids, mask = text_batch()
    untouched = make_backbone(kind, dtype=dtype).model
    model = make_model(kind, dtype=dtype, gradient_checkpointing=checkpointing).train()
    with bf16_if(autocast):
        expected = untouched(ids, attention_mask=mask).logits
        no_audio = model(ids, mask).logits
        heard = model(ids, mask, audio_batch(3)).logits
        model.set_gate(0.0)
        gate_zero = model(ids, mask, audio_batch(3)).logits
        model.set_gate(1.0)
        model.set_gate_warmup(0, 100)
        not_warm = model(ids, mask, audio_batch(3)).logits
    assert torch.equal(no_audio, expected)
    assert torch.equal(gate_zero, expected)
    assert torch.equal(not_warm, expected)
    assert (heard - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_silence_generates_what_the_untouched_backbone_does(
    make_model, make_backbone, text_batch, audio_batch, kind
):
    ids, mask = text_batch(left=True)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
    expected = make_backbone(kind).model.generate(input_ids=ids, attention_mask=mask, **options)
    model = make_model(kind)
    assert torch.equal(model.generate(ids, mask, **options), expected)
    model.set_gate(0.0)
    assert torch.equal(model.generate(ids, mask, audio_batch(3), **options), expected)


def test_images_pass_through_unheard_and_heard(make_model, make_backbone, audio_batch):
    ids = torch.tensor([[5, 3, 3, 3, 3, 9, 8]])  # four image tokens
    pixels = torch.randn(1, 3, 32, 32)
    model = make_model()
    expected = make_backbone().model(ids, pixel_values=pixels).logits
    assert torch.equal(model(ids, pixel_values=pixels).logits, expected)
    heard = model(ids, audio=audio_batch(1), pixel_values=pixels).logits
    assert (heard - expected).abs().max() > 0.1


# ---- what is trained


def test_trainable_names_exactly(make_model):
    model = make_model()
    groups = model.trainable_groups()
    assert set(groups["projector"]) == {
        "projector.norm.weight", "projector.norm.bias", "projector.mlp.0.weight",
        "projector.mlp.0.bias", "projector.mlp.2.weight", "projector.mlp.2.bias",
    }  # fmt: skip
    assert set(groups["adapter"]) == {
        f"fusion.{layer}.residual.residual_scale" for layer in (1, 3)
    } | {
        f"fusion.{layer}.{proj}_proj.lora_{side}.default.weight"
        for layer in (1, 3) for proj in "qkvo" for side in "AB"
    }  # fmt: skip
    named = {n: p for group in groups.values() for n, p in group.items()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(named)
    assert all(named[n] is p for n, p in model.named_parameters() if p.requires_grad)


def test_every_trainable_gets_a_gradient_and_nothing_else_does(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model().train()
    model(ids, mask, audio_batch(3), labelled(ids, mask)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


def test_train_never_trains_the_backbone(make_model):
    for checkpointing in (False, True):
        model = make_model(gradient_checkpointing=checkpointing)
        model.train()
        on = {name for name, module in model.backbone.named_modules() if module.training}
        # with checkpointing a decoder layer's own flag asks transformers to recompute it
        layers = {f"model.language_model.layers.{i}" for i in (2, 3, 4)}
        assert on == (layers if checkpointing else set())
        assert model.projector.mlp.training
        assert model.fusion.training
        model.eval()
        assert not any(module.training for module in model.modules())


# ---- the graph


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_below_the_first_fusion_holds_a_graph(
    make_model, text_batch, audio_batch, checkpointing
):
    ids, mask = text_batch()
    model = make_model(gradient_checkpointing=checkpointing).train()
    needs = {}
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, i=i: needs.update({i: out.requires_grad}))
        for i, layer in model.layers.items()
    ]
    entered = {}
    handles += [
        layer.register_forward_pre_hook(
            lambda _m, args, i=i: entered.update({i: args[0].requires_grad})
        )
        for i, layer in model.layers.items()
    ]
    model(ids, mask, audio_batch(3), labelled(ids, mask)).loss.backward()
    assert needs == {0: False, 1: True, 2: True, 3: True, 4: True}
    assert entered == {0: False, 1: False, 2: True, 3: True, 4: True}
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_memory_not_gradients(make_model, text_batch, audio_batch, kind):
    ids, mask = text_batch()
    found = []
    for checkpointing in (False, True):
        model = make_model(kind, gradient_checkpointing=checkpointing).train()
        runs = [0]
        handle = model.layers[2].mlp.register_forward_pre_hook(
            lambda *_, runs=runs: runs.__setitem__(0, runs[0] + 1)
        )
        output = model(ids, mask, audio_batch(3), labelled(ids, mask))
        output.loss.backward()
        handle.remove()
        assert runs[0] == 1 + checkpointing  # once more in the backward pass
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((output.loss, grads))
    (plain_loss, plain), (loss, grads) = found
    assert torch.equal(plain_loss, loss)
    assert plain.keys() == grads.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, grads[name]), name


# ---- the loss


def test_loss_is_the_summed_cross_entropy_of_supervised_tokens(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    labels = labelled(ids, mask)
    model = make_model()
    output = model(ids, mask, audio_batch(3), labels)
    logits = model(ids, mask, audio_batch(3)).logits
    log = logits[:, :-1].log_softmax(-1)
    expected = -sum(
        log[b, t, labels[b, t + 1]]
        for b in range(3)
        for t in range(ids.shape[1] - 1)
        if labels[b, t + 1] != IGNORED
    )
    torch.testing.assert_close(output.loss, expected)
    assert output.logits.shape == ((labels[:, 1:] != IGNORED).sum(), 264)
    torch.testing.assert_close(output.logits, logits[:, :-1][labels[:, 1:] != IGNORED])


def test_padding_side_and_amount_do_not_matter(make_model, text_batch, audio_batch):
    model = make_model()
    right, left = text_batch(), text_batch(left=True)
    at_right = model(*right, audio_batch(3)).logits
    at_left = model(*left, audio_batch(3)).logits
    for row, length in enumerate((9, 6, 4)):
        alone = model(right[0][row : row + 1, :length], None, audio_batch(3)[row : row + 1]).logits
        torch.testing.assert_close(at_right[row, :length], alone[0], rtol=1e-4, atol=1e-4)
        same = left[0][row, 9 - length :]
        alone = model(same[None], None, audio_batch(3)[row : row + 1]).logits
        torch.testing.assert_close(at_left[row, 9 - length :], alone[0], rtol=1e-4, atol=1e-4)


# ---- adaptive projector


def test_adaptive_clips_hear_their_own_number_of_tokens(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model(projector={"kind": "adaptive"})
    short = model(ids, mask, audio_batch(3), seconds=torch.tensor([1.0, 10.0, 30.0])).logits
    full = model(ids, mask, audio_batch(3)).logits
    assert (short[0] - full[0]).abs().max() > 1e-3
    torch.testing.assert_close(short[1:], full[1:])
    tokens, used = model.audio_tokens(audio_batch(3), torch.tensor([1.0, 10.0, 30.0]))
    assert tokens.shape == (3, 6, 32)
    assert used.sum(1).tolist() == [2, 6, 6]


# ---- generation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projector", ["mlp", "adaptive"])
def test_greedy_generation_equals_teacher_forcing(
    make_model, text_batch, audio_batch, kind, projector
):
    ids, mask = text_batch(left=True)
    seconds = torch.tensor([1.0, 5.0, 10.0])
    model = make_model(kind, projector={"kind": projector})
    out = model.generate(
        ids, mask, audio_batch(3), seconds, max_new_tokens=8, do_sample=False,
        eos_token_id=None, pad_token_id=2, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    new = out.sequences[:, ids.shape[1] :]
    full = torch.cat([mask, torch.ones_like(new)], 1)
    forced = model(out.sequences, full, audio_batch(3), seconds=seconds).logits
    assert new.shape == (3, 8)
    for step, logits in enumerate(out.logits):
        # cached and uncached attention round differently; measured below 6e-6
        torch.testing.assert_close(logits, forced[:, ids.shape[1] - 1 + step], rtol=1e-3, atol=1e-3)
        assert torch.equal(logits.argmax(-1), new[:, step])


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_equals_teacher_forcing(make_model, text_batch, audio_batch, kind):
    ids, mask = text_batch(left=True)
    seconds = torch.tensor([1.0, 5.0, 10.0])
    model = make_model(kind, projector={"kind": "adaptive"})
    out = model.generate(
        ids, mask, audio_batch(3), seconds, max_new_tokens=6, num_beams=3, do_sample=False,
        num_return_sequences=3, eos_token_id=None, pad_token_id=2, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    new = out.sequences[:, ids.shape[1] :]
    full = torch.cat([mask.repeat_interleave(3, 0), torch.ones_like(new)], 1)
    audio = audio_batch(3).repeat_interleave(3, 0)
    forced = model(out.sequences, full, audio, seconds=seconds.repeat_interleave(3)).logits
    log = forced[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    per_token = log.gather(-1, new[..., None])[..., 0]
    steps = model.backbone.compute_transition_scores(
        out.sequences, out.scores, out.beam_indices, normalize_logits=False
    )
    torch.testing.assert_close(steps, per_token, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.sequences_scores, per_token.mean(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_first_token_hears_nothing_also_while_generating(
    make_model, text_batch, audio_batch, kind, beams
):
    ids, mask = text_batch(left=True)
    model = make_model(kind, fusion={"skip_first_token": True})
    first = mask.long().argmax(1), torch.arange(3)
    with_mask = {"input_ids": ids, "attention_mask": mask}
    untouched = model.backbone(**with_mask, output_hidden_states=True).hidden_states
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with model.hearing(audio_batch(3)):
        heard = model.backbone(
            **with_mask, position_ids=positions, output_hidden_states=True
        ).hidden_states
    for before, after in zip(untouched[2:], heard[2:], strict=True):
        same = (before - after).abs().amax(-1) < 1e-4  # rounding of other positions: 3e-6
        assert same[first[1], first[0]].all()
        assert not same[:, -3:].any()  # what real tokens after it hear
    out = model.generate(
        ids, mask, audio_batch(3), max_new_tokens=5, num_beams=beams, num_return_sequences=beams,
        do_sample=False, eos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    full = torch.cat([mask, torch.ones(3, 5, dtype=mask.dtype)], 1).repeat_interleave(beams, 0)
    forced = model(out, full, audio_batch(3).repeat_interleave(beams, 0)).logits
    if beams == 1:
        assert torch.equal(forced[:, ids.shape[1] - 1 : -1].argmax(-1), out[:, ids.shape[1] :])
    everywhere = make_model(kind)(out, full, audio_batch(3).repeat_interleave(beams, 0)).logits
    assert not torch.allclose(forced, everywhere, atol=1e-2)


def test_skipping_needs_positions(make_model, text_batch, audio_batch):
    ids, _ = text_batch()
    model = make_model(fusion={"skip_first_token": True})
    model.layers[1].register_forward_pre_hook(
        lambda _m, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "position_ids"}),
        with_kwargs=True,
    )
    with pytest.raises(ModelError, match="skip_first_token = True: .* set it to false"):
        model(ids, audio=audio_batch(3))


@pytest.mark.parametrize("beams", [1, 3])
def test_audio_keys_and_values_are_computed_once_per_clip(
    make_model, text_batch, audio_batch, beams
):
    ids, mask = text_batch(left=True)
    model = make_model()
    rows = {"projector": [], "key": [], "value": [], "query": []}
    watched = [("projector", model.projector)]
    for block in model.fusion.blocks().values():
        watched += [("key", block.k_proj), ("value", block.v_proj), ("query", block.q_proj)]
    handles = [
        module.register_forward_pre_hook(lambda _m, args, n=name: rows[n].append(args[0].shape[0]))
        for name, module in watched
    ]
    model.generate(
        ids, mask, audio_batch(3), max_new_tokens=5, num_beams=beams, do_sample=False,
        eos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    for handle in handles:
        handle.remove()
    assert rows["projector"] == [3]
    assert rows["key"] == rows["value"] == [3, 3]  # once per fusion layer, clips and not beams
    assert rows["query"] == [3 * beams] * 10  # two layers, five tokens


def test_one_hearing_serves_batches_of_several_sizes(make_model, text_batch, audio_batch):
    ids, mask = text_batch((7, 7))
    model = make_model()
    expected = model(ids, mask, audio_batch(2)).logits
    with model.hearing(audio_batch(2)):
        tripled = model.backbone(ids.repeat_interleave(3, 0)).logits
        single = model.backbone(ids).logits
        doubled = model.backbone(ids.repeat_interleave(2, 0)).logits
    assert torch.equal(single, expected)
    torch.testing.assert_close(tripled, expected.repeat_interleave(3, 0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(doubled, expected.repeat_interleave(2, 0), rtol=1e-4, atol=1e-4)


# ---- hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ModelError])
@pytest.mark.parametrize("where", ["layer", "fusion", "projector"])
def test_no_hook_survives_an_exception(make_model, text_batch, audio_batch, error, where):
    ids, mask = text_batch()
    model = make_model()
    expected = model(ids, mask).logits
    victim = {
        "layer": model.layers[4],
        "fusion": model.fusion.blocks()[3],
        "projector": model.projector,
    }[where]

    def fail(*_):
        raise error("stop")

    trap = victim.register_forward_pre_hook(fail)
    with pytest.raises(error, match="stop"):
        model(ids, mask, audio_batch(3))
    with pytest.raises(error, match="stop"):
        model.generate(ids, mask, audio_batch(3), max_new_tokens=2)
    trap.remove()
    assert hooks(model) == [0] * 5
    assert torch.equal(model(ids, mask).logits, expected)


def test_hearing_leaves_nothing_behind(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model()
    keys = list(model.state_dict())
    flags = [m.training for m in model.modules()]
    with model.hearing(audio_batch(3)):
        assert hooks(model) == [0, 1, 0, 1, 0]
        assert list(model.state_dict()) == keys
    model(ids, mask, audio_batch(3))
    model.generate(ids, mask, audio_batch(3), max_new_tokens=2)
    assert hooks(model) == [0] * 5
    assert [m.training for m in model.modules()] == flags


def test_the_users_hooks_still_fire_and_see_what_leaves_the_layer(
    make_model, text_batch, audio_batch
):
    ids, mask = text_batch()
    model = make_model()
    early, late = [], []
    handle = model.layers[1].register_forward_hook(lambda _m, _a, out: early.append(out))
    with model.hearing(audio_batch(3)):
        other = model.layers[1].register_forward_hook(lambda _m, _a, out: late.append(out))
        model.backbone(ids, attention_mask=mask)
        other.remove()
    model(ids, mask)
    assert len(early) == 2
    assert torch.equal(early[0], late[0])
    assert not torch.equal(early[0], early[1])
    assert hooks(model) == [0, 1, 0, 0, 0]
    handle.remove()


def test_hidden_states_are_those_after_the_fusion(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model()
    before = model.backbone(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    entered = {}
    handles = [
        layer.register_forward_pre_hook(lambda _m, args, i=i: entered.update({i: args[0]}))
        for i, layer in model.layers.items()
    ]
    with model.hearing(audio_batch(3)):
        after = model.backbone(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    for i, hidden in entered.items():
        assert torch.equal(after[i], hidden)
        assert torch.equal(after[i], before[i]) == (i <= 1)


# ---- the gate


@given(st.floats(0, 1), st.integers(0, 50), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_effective_gate(value, step, steps):
    from safe.models.safe_model import OuterGate

    gate = OuterGate(value, step, steps)
    expected = value if steps == 0 else value * min(step, steps) / steps
    assert gate.effective == pytest.approx(expected, abs=1e-12)
    assert 0.0 <= gate.effective <= 1.0


def test_gate_scales_the_branch_the_same_in_training_and_evaluation(
    make_model, text_batch, audio_batch
):
    ids, mask = text_batch()
    one, other = make_model(), make_model()
    one.set_gate(0.5)
    other.set_gate_warmup(50, 100)
    trained = one.train()(ids, mask, audio_batch(3)).logits
    assert torch.equal(trained, other.eval()(ids, mask, audio_batch(3)).logits)
    assert torch.equal(trained, other.train()(ids, mask, audio_batch(3)).logits)
    state = other.gate_state()
    assert state == {"value": 1.0, "warmup_step": 50, "warmup_steps": 100}
    fresh = make_model()
    fresh.load_gate_state(state)
    assert torch.equal(fresh(ids, mask, audio_batch(3)).logits, trained)


def test_a_shut_gate_is_no_deadlock(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model(excited=False, fusion={"gate_init": 0.0})
    model(ids, mask, audio_batch(3), labelled(ids, mask)).loss.backward()
    for block in model.fusion.blocks().values():
        assert block.residual.residual_scale.grad != 0


# ---- errors


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_gate_out_of_range(make_model, value):
    with pytest.raises(ModelError, match=f"must be between 0 and 1, got {value}"):
        make_model().set_gate(value)


def test_negative_warm_up(make_model):
    with pytest.raises(ModelError, match="must not be negative, got -1 of 5"):
        make_model().set_gate_warmup(-1, 5)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_wrong_number_of_clips(make_model, text_batch, audio_batch, count):
    ids, mask = text_batch()
    model = make_model()
    message = f"{count} audio embeddings for 3 texts; give one per text"
    with pytest.raises(ModelError, match=message):
        model(ids, mask, audio_batch(count))
    with pytest.raises(ModelError, match=message):
        model.generate(ids, mask, audio_batch(count), max_new_tokens=2)
    with pytest.raises(ModelError, match=f"{count} clip lengths for 3 texts"):
        model(ids, mask, audio_batch(3), seconds=torch.ones(count))
    assert hooks(model) == [0] * 5


def test_texts_that_clips_cannot_share(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    model = make_model()
    with (
        model.hearing(audio_batch(2)),
        pytest.raises(ModelError, match="3 texts cannot share the audio of 2 clips evenly"),
    ):
        model.backbone(ids, attention_mask=mask)


def test_bad_audio_is_named(make_model, text_batch, audio_batch):
    ids, mask = text_batch()
    audio = audio_batch(3)
    audio[1, 0] = float("nan")
    with pytest.raises(ModelError, match=r"rows \[1\] contain NaN or Inf"):
        make_model()(ids, mask, audio)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"num_layers": 9}])
def test_configuration_for_another_backbone(make_backbone, make_config, change):
    with pytest.raises(ModelError, match=r"'tiny-llava' has 32 and 5; adapt it with"):
        SAFEModel(make_backbone(), make_config(**change))

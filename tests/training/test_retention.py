"""Every retention variant does what it says, and nothing else."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs.errors import CheckpointError, ModelError
from configs.schema import RetentionConfig
from safe.models.prompts import LLAVA_15, REQUEST
from safe.training.batches import CaptionDataset, CaptionTokens
from safe.training.retention import (
    build_retention,
    divergence,
    fisher_diagonal,
    query_inputs,
)
from safe.training.retention_texts import RetentionTexts, read_texts

EMBEDDINGS = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
CAPTIONS = [["a dog barks"], ["rain falls"], ["a bell rings"], ["wind"], ["a car"], ["birds sing"]]
PROMPT = f"{REQUEST} "


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return CaptionTokens(tokenizer, PROMPT)


@pytest.fixture
def texts(tokens):
    return RetentionTexts(tokens, EMBEDDINGS, 0, torch.device("cpu"))


@pytest.fixture
def few_texts(monkeypatch):
    """Eight of the shipped texts, where a test needs no more."""
    some = read_texts()[:8]
    monkeypatch.setattr("safe.training.retention_texts.read_texts", lambda: some)


def config(variant, weight=1.0, every=1):
    return RetentionConfig(variant=variant, weight=weight, every=every)


def train(model, tokens, retention, steps=12, start=1, lr=0.02, optimizer=None):
    """A bare loop in the order of the real one: backward, retention, step, after_step."""
    n = len(CAPTIONS)
    dataset = CaptionDataset(list("abcdef"), CAPTIONS, EMBEDDINGS, np.ones(n), tokens, 16)
    batch = dataset.batch(range(n))
    trainable = [p for g in model.trainable_groups().values() for p in g.values()]
    optimizer = optimizer or torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)
    values = []
    for step in range(start, start + steps):
        output = model(batch.input_ids, batch.attention_mask, batch.audio, batch.labels)
        (output.loss / batch.supervised).backward()
        values.append(retention.backward(step))
        optimizer.step()
        retention.after_step()
        optimizer.zero_grad()
    return values, optimizer


def trainables(model):
    return {n: p for g in model.trainable_groups().values() for n, p in g.items()}


# ---- texts


def test_shipped_texts_are_questions_with_answers():
    pairs = read_texts()
    assert len(pairs) == len(set(pairs)) == 48
    assert all(q and a and "\t" not in a and q == q.strip() and a == a.strip() for q, a in pairs)


def test_question_takes_the_place_of_the_request(tokenizer):
    for prompt, expected in (
        (LLAVA_15, "USER: {} ASSISTANT:"),
        ("Describe the sound:\n", "{}\n"),
        ("Describe the sound: ", "{}"),
        ("ASSISTANT:", "{}"),
    ):
        made = CaptionTokens(tokenizer, prompt)
        texts = RetentionTexts(made, EMBEDDINGS, 0, torch.device("cpu"))
        question, answer = read_texts()[0]
        assert tokenizer.decode(texts.prompts[0]) == expected.format(question)
        assert tokenizer.decode(texts.answers[0][:-1]).strip() == answer
        assert texts.answers[0][-1] == tokenizer.eos_token_id


def test_draws_depend_on_seed_and_step_alone(tokens, texts):
    again = RetentionTexts(tokens, EMBEDDINGS, 0, torch.device("cpu"))
    other = RetentionTexts(tokens, EMBEDDINGS, 1, torch.device("cpu"))
    texts.draw(3, 8)
    for step in (0, 7, 100):
        first, second, third = (t.draw(step, 8) for t in (texts, again, other))
        assert torch.equal(first.input_ids, second.input_ids)
        assert torch.equal(first.audio, second.audio)
        assert not torch.equal(first.audio, third.audio)
    assert not torch.equal(texts.draw(0, 8).audio, texts.draw(1, 8).audio)


def test_all_holds_every_text_once(texts):
    rows = [
        row[mask.bool()].tolist()
        for batch in texts.all(7)
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert rows == [p + a for p, a in zip(texts.prompts, texts.answers, strict=True)]


# ---- no retention


def test_no_retention_adds_nothing(make_model, tokens):
    model = make_model()
    before = {n: p.detach().clone() for n, p in trainables(model).items()}
    retention = build_retention(config("no_retention"), model, tokens, EMBEDDINGS, 0)
    assert retention.backward(1) is None
    retention.after_step()
    assert retention.state() == {}
    retention.load_state({})
    for name, parameter in trainables(model).items():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


# ---- soft


def test_soft_is_the_kl_of_untouched_against_fused(make_model, make_backbone, tokens, texts):
    model = make_model()
    retention = build_retention(config("soft_retention", weight=0.5), model, tokens, EMBEDDINGS, 0)
    value = retention.backward(4)
    batch = texts.draw(4, 8)
    untouched = make_backbone().model(batch.input_ids, attention_mask=batch.attention_mask).logits
    fused = model(batch.input_ids, batch.attention_mask, batch.audio).logits
    p, q = (x[:, :-1][batch.labels[:, 1:] != -100].softmax(-1) for x in (untouched, fused))
    kl = (p * (p / q).log()).sum() / len(p)
    assert value == pytest.approx(kl.item(), rel=1e-5)
    expected = torch.autograd.grad(0.5 * kl, list(trainables(model).values()))
    for (name, parameter), gradient in zip(trainables(model).items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=2e-3, atol=1e-5, msg=name)


def test_soft_lowers_the_divergence_that_training_causes(make_model, tokens, texts):
    after = {}
    for variant in ("no_retention", "soft_retention"):
        model = make_model()
        retention = build_retention(config(variant, weight=3.0), model, tokens, EMBEDDINGS, 0)
        train(model, tokens, retention)
        with torch.no_grad():
            after[variant] = np.mean([divergence(model, b).item() for b in texts.all(16)])
    assert after["soft_retention"] < 0.7 * after["no_retention"]


def test_soft_runs_every_so_many_steps(make_model, tokens):
    model = make_model()
    retention = build_retention(config("soft_retention", every=3), model, tokens, EMBEDDINGS, 0)
    values = [retention.backward(step) for step in range(1, 8)]
    assert [v is not None for v in values] == [False, False, True, False, False, True, False]


def test_soft_is_zero_while_the_gate_is_shut(make_model, tokens):
    model = make_model(fusion={"gate_warmup_steps": 10})
    retention = build_retention(config("soft_retention"), model, tokens, EMBEDDINGS, 0)
    assert retention.backward(1) == 0.0
    assert all(p.grad is None for p in trainables(model).values())


# ---- fisher


def test_fisher_gradient_by_its_formula(make_model, tokens, few_texts):
    model = make_model()
    retention = build_retention(config("fisher_retention", 0.3), model, tokens, EMBEDDINGS, 0)
    assert retention.backward(1) == 0.0
    state = retention.state()
    with torch.no_grad():
        for parameter in trainables(model).values():
            parameter.grad = None
            parameter += 0.01 * torch.randn_like(parameter)
    value = retention.backward(2)
    expected = 0.0
    for name, parameter in trainables(model).items():
        importance, start = state[f"fisher.{name}"], state[f"start.{name}"]
        drift = parameter.detach() - start
        expected += (importance.double() * drift.double() ** 2).sum().item()
        torch.testing.assert_close(parameter.grad, 0.3 * 2 * importance * drift)
    assert value == pytest.approx(expected, rel=1e-5)
    elements = torch.cat([v.flatten() for n, v in state.items() if n.startswith("fisher.")])
    assert elements.min() >= 0
    assert elements.double().mean().item() == pytest.approx(1.0, rel=1e-5)


def test_fisher_of_the_gate_is_the_expected_squared_score(make_model, texts):
    """Against the exact expectation over every possible answer token, instead of a drawn one."""
    model = make_model()
    names = [n for n in trainables(model) if n.endswith("residual_scale")]
    gates = [trainables(model)[n] for n in names]
    exact = torch.zeros(len(gates), dtype=torch.double)
    for batch in texts.all(1):
        with sdpa_kernel(SDPBackend.MATH):  # the fast one has no second derivative
            logits = model(batch.input_ids, batch.attention_mask, batch.audio, batch.labels).logits
        # Fisher of a softmax: J^T (diag(p) - p p^T) J, J = d logits / d gate by a double backward
        carrier = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, gates, carrier, create_graph=True)
        for i, gradient in enumerate(pulled):
            jacobian = torch.autograd.grad(gradient, carrier, retain_graph=True)[0]
            p = logits.detach().softmax(-1)
            mean = (p * jacobian).sum(-1, keepdim=True)
            exact[i] += (p * (jacobian - mean) ** 2).sum().double()
    drawn = []
    for seed in range(3):
        texts.seed = seed
        found = fisher_diagonal(model, texts)
        drawn.append(torch.stack([found[n] for n in names]).double())
    # each is normalised by its own mean over all elements, so only the ratio of gates compares;
    # 3 x 48 draws: the ratio scatters by about 25%, a wrong formula is off by orders of magnitude
    found = torch.stack(drawn).mean(0)
    assert (found[0] / found[1]).item() == pytest.approx((exact[0] / exact[1]).item(), rel=0.6)


def test_fisher_keeps_important_weights_nearer(make_model, tokens):
    moved = {}
    for variant in ("no_retention", "fisher_retention"):
        model = make_model(excited=False)
        start = {n: p.detach().clone() for n, p in trainables(model).items()}
        importance = fisher_diagonal(
            model, RetentionTexts(tokens, EMBEDDINGS, 0, torch.device("cpu"))
        )
        retention = build_retention(config(variant, weight=1.0), model, tokens, EMBEDDINGS, 0)
        train(model, tokens, retention)
        drift = torch.cat([(p - start[n]).flatten() for n, p in trainables(model).items()]).abs()
        weight = torch.cat([importance[n].flatten() for n in start])
        top = weight > weight.quantile(0.99)
        moved[variant] = (drift[top].mean().item(), drift[weight == 0].mean().item())
    assert moved["fisher_retention"][0] < 0.5 * moved["no_retention"][0]
    # what does not matter to the texts stays free to learn
    assert moved["fisher_retention"][1] > 0.5 * moved["no_retention"][1]


def test_fisher_ignores_the_warm_up_but_not_a_shut_gate(make_model, tokens, few_texts):
    model = make_model(fusion={"gate_warmup_steps": 10})
    retention = build_retention(config("fisher_retention"), model, tokens, EMBEDDINGS, 0)
    assert any(v.any() for n, v in retention.state().items() if n.startswith("fisher."))
    assert model.outer_gate.effective == 0.0
    assert model.outer_gate.warmup_steps == 10
    model.set_gate(0.0)
    with pytest.raises(ModelError, match=r"gate at 0\.0 no audio reaches the texts; open the gate"):
        build_retention(config("fisher_retention"), model, tokens, EMBEDDINGS, 0)


# ---- nullspace


def influence_on_queries(model, basis):
    """Largest |B A U| over the fusion layers."""
    worst = 0.0
    for index, block in model.fusion.blocks().items():
        a, b = (getattr(block.q_proj, f"lora_{x}")["default"].weight for x in "AB")
        worst = max(worst, (b @ a @ basis[f"basis.{index}"]).norm().item())
    return worst


def test_nullspace_keeps_the_texts_queries(make_model, tokens):
    basis = build_retention(
        config("nullspace_retention"), make_model(), tokens, EMBEDDINGS, 0
    ).state()
    found = {}
    for variant in ("no_retention", "nullspace_retention"):
        model = make_model()
        retention = build_retention(config(variant), model, tokens, EMBEDDINGS, 0)
        train(model, tokens, retention)
        found[variant] = influence_on_queries(model, basis)
        assert max(p.abs().max() for p in trainables(model).values()) > 0
    assert found["no_retention"] > 1.0
    assert found["nullspace_retention"] < 1e-5  # float32 rounding; measured 3e-7


def test_nullspace_basis_is_the_texts_query_inputs(make_model, tokens, texts):
    model = make_model()
    state = build_retention(config("nullspace_retention"), model, tokens, EMBEDDINGS, 0).state()
    assert sorted(state) == ["basis.1", "basis.3"]
    reference = {1: [], 3: []}
    for batch in texts.all(48):
        hidden = model.backbone(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states
        for index in reference:
            norm = model.layers[index].input_layernorm
            reference[index].append(norm(hidden[index + 1])[batch.attention_mask.bool()])
    collected = query_inputs(model, texts)
    for index, parts in reference.items():
        inputs = torch.cat(parts).detach()
        torch.testing.assert_close(collected[index], inputs, rtol=1e-4, atol=1e-5)
        basis = state[f"basis.{index}"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
        values, vectors = torch.linalg.eigh(inputs.double().T @ inputs.double())
        share = (values.flip(0).cumsum(0) / values.sum()).tolist()
        k = min(16, next(i for i, s in enumerate(share) if s >= 0.95) + 1)
        assert basis.shape == (32, k)
        top = vectors.flip(1)[:, :k].float()
        torch.testing.assert_close(basis @ basis.T, top @ top.T, rtol=0, atol=1e-4)


def test_nullspace_touches_no_hooks_or_gradients(make_model, tokens):
    model = make_model()
    build_retention(config("nullspace_retention"), model, tokens, EMBEDDINGS, 0)
    assert not any(layer._forward_hooks for layer in model.layers.values())
    assert all(p.grad is None for p in trainables(model).values())


# ---- full, resume


def test_full_is_all_three(make_model, tokens, few_texts):
    model = make_model()
    full = build_retention(config("full_retention", every=2), model, tokens, EMBEDDINGS, 0)
    names = {n.partition(".")[0] for n in full.state()}
    assert names == {"basis", "fisher", "start"}
    assert influence_on_queries(model, full.state()) < 1e-5
    with torch.no_grad():
        for parameter in trainables(model).values():
            parameter += 0.01
    odd, even = full.backward(1), full.backward(2)
    assert 0 < odd < even  # the penalty alone, then with the divergence of an even step
    full.after_step()
    assert influence_on_queries(model, full.state()) < 1e-5


@pytest.mark.parametrize("variant", ["soft_retention", "full_retention"])
def test_resumed_training_is_identical(make_model, tokens, few_texts, variant):
    setting = config(variant, weight=0.1, every=2)
    straight = make_model()
    whole = build_retention(setting, straight, tokens, EMBEDDINGS, 0)
    values, _ = train(straight, tokens, whole, steps=6)

    first = make_model()
    begun = build_retention(setting, first, tokens, EMBEDDINGS, 0)
    head, optimizer = train(first, tokens, begun, steps=3)
    second = make_model()
    torch.rand(5)  # the run's own random numbers are not what retention draws from
    resumed = build_retention(setting, second, tokens, EMBEDDINGS, 0)
    with torch.no_grad():
        for name, parameter in trainables(second).items():
            parameter.copy_(trainables(first)[name])
    resumed.load_state({n: t.clone() for n, t in begun.state().items()})
    fresh = torch.optim.AdamW(list(trainables(second).values()), lr=0.02, weight_decay=0.0)
    fresh.load_state_dict(optimizer.state_dict())
    tail, _ = train(second, tokens, resumed, steps=3, start=4, optimizer=fresh)

    assert head + tail == values
    for name, parameter in trainables(straight).items():
        assert torch.equal(parameter, trainables(second)[name]), name


def test_state_of_another_variant_is_refused(make_model, tokens, few_texts):
    model = make_model()
    nullspace = build_retention(config("nullspace_retention"), model, tokens, EMBEDDINGS, 0)
    with pytest.raises(CheckpointError, match=r"2 tensors differ, basis\.1, basis\.3; resume with"):
        nullspace.load_state({})
    with pytest.raises(CheckpointError, match="retention.variant"):
        build_retention(config("no_retention"), model, tokens, EMBEDDINGS, 0).load_state(
            nullspace.state()
        )


@pytest.mark.parametrize("variant", ["soft_retention", "fisher_retention", "nullspace_retention"])
def test_global_random_numbers_are_not_consumed(make_model, tokens, few_texts, variant):
    model = make_model()
    before = torch.get_rng_state()
    retention = build_retention(config(variant), model, tokens, EMBEDDINGS, 0)
    retention.backward(1)
    retention.after_step()
    assert torch.equal(torch.get_rng_state(), before)


def test_works_on_a_bfloat16_backbone(make_model, tokens, few_texts):
    model = make_model("causal", dtype=torch.bfloat16)
    retention = build_retention(config("full_retention", 0.01), model, tokens, EMBEDDINGS, 0)
    values, _ = train(model, tokens, retention, steps=2)
    assert all(math.isfinite(v) for v in values)
    assert influence_on_queries(model, retention.state()) < 1e-5

"""Batched answers: equal to one row at a time, the same whatever stands beside them, drawn as the softmax says."""

import contextlib
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from finetune.errors import DivergedError
from finetune.model import ragged
from finetune.model.base import choose_precision, load_base
from finetune.model.decode_attention import BLOCK
from finetune.model.draw import draw, keep_top, pick, uniforms
from finetune.model.generation import SHARE_FROM, Sampling, Stream, generate
from finetune.model.ragged import Layout, ragged_hidden

CPU = torch.device("cpu")
WORDS = 97
STOPS = frozenset(range(2, 9))
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def tiny(kv_heads=2, **changes):
    torch.manual_seed(0)
    settings = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "vocab_size": WORDS, "max_position_embeddings": 512, "initializer_range": 0.2,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
    ragged.install(model)
    return model


def nf4_with_lora(folder):
    tiny(2).save_pretrained(folder)
    base = load_base(folder, choose_precision("nf4", "fp32", CPU), CPU)
    return base, with_lora(base)


def with_lora(model):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def some_prompts(lengths=(5, 1, 33, 12, 12, 40, 7, 3), seed=0):
    random = np.random.default_rng(seed)
    prompts = [random.integers(9, WORDS, length) for length in lengths]
    return [*prompts, prompts[-1].copy()]  # the same prompt twice


def alone(model, prompt, count, stops=STOPS):
    """transformers' own greedy answer to one prompt."""
    ids = torch.tensor(prompt)[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=sorted(stops),
        pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def ids_of(answers):
    return [[answer.ids.tolist() for answer in samples] for samples in answers]


def greedy(count, stops=STOPS):
    return Sampling((0.0,), count, stops)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tiny(4),
        lambda folder: tiny(1),
        lambda folder: tiny(2, rope_parameters=LLAMA3),
        lambda folder: tiny(2, tie_word_embeddings=True, head_dim=8),
        lambda folder: nf4_with_lora(folder)[0],
    ],
    ids=["mha", "gqa", "llama3-rope", "tied-narrow-heads", "nf4-lora"],
)
def test_greedy_in_a_batch_is_transformers_greedy_alone(make, tmp_path):
    model = make(tmp_path)
    prompts = some_prompts()
    wanted = [alone(model, prompt, 24) for prompt in prompts]
    assert len({len(ids) for ids in wanted}) > 1, "every answer ends at the same place: nothing leaves early"
    for rows_at_once, samples in ((1, 1), (3, 4), (64, 3)):
        answers = generate(model, prompts, samples, greedy(24), keys=range(len(prompts)), rows_at_once=rows_at_once)
        assert ids_of(answers) == [[ids] * samples for ids in wanted]
        for samples_of_prompt in answers:
            for answer in samples_of_prompt:
                assert answer.finished == (int(answer.ids[-1]) in STOPS)
                assert not set(answer.ids[:-1].tolist()) & STOPS
                assert answer.finished or len(answer.ids) == 24


def test_answers_longer_than_a_block_of_the_store():
    model, count = tiny(2), 2 * BLOCK + 5
    prompts = some_prompts((3, 17))
    wanted = [alone(model, prompt, count, frozenset({WORDS + 1})) for prompt in prompts]
    assert ids_of(generate(model, prompts, 1, greedy(count, frozenset()), keys=[0, 1, 2])) == [[ids] for ids in wanted]


@pytest.mark.parametrize("shared_tokens", [SHARE_FROM - 1, SHARE_FROM, 80])
def test_a_beginning_that_all_prompts_share(shared_tokens):
    model = tiny(2)
    system = np.random.default_rng(5).integers(9, WORDS, shared_tokens)
    prompts = [np.concatenate([system, prompt]) for prompt in some_prompts()]
    wanted = [[alone(model, prompt, 12)] for prompt in prompts]
    assert ids_of(generate(model, prompts, 1, greedy(12), keys=range(len(prompts)))) == wanted


def test_a_prefill_has_a_bound(monkeypatch):
    seen = []

    def watched(decoder, ids_T, layout, keep):
        seen.append(len(ids_T))
        return ragged_hidden(decoder, ids_T, layout, keep)

    monkeypatch.setattr("finetune.model.generation.PREFILL_TOKENS", 45)
    monkeypatch.setattr("finetune.model.generation.ragged_hidden", watched)
    model, prompts = tiny(2), some_prompts()
    answers = generate(model, prompts, 1, greedy(8), keys=range(len(prompts)))
    assert max(seen) <= 45 and len(seen) > 1 and sum(seen) == sum(len(prompt) for prompt in prompts[:-1])
    assert ids_of(answers) == [[alone(model, prompt, 8)] for prompt in prompts]


def test_real_weights_say_what_they_always_said(shared):
    folder = shared / "models" / "stories260K"
    golden = json.loads((folder / "golden_greedy.json").read_text(encoding="utf-8"))["hf_greedy_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    ragged.install(model)
    cuts = (1, 2, 20, 60)
    prompts = [np.array(golden[:cut]) for cut in cuts]
    answers = generate(
        model, prompts, 2, greedy(len(golden) - 1, frozenset({2})), keys=range(len(cuts)), rows_at_once=5
    )
    for cut, samples in zip(cuts, answers, strict=True):
        for answer in samples:
            assert answer.ids[: len(golden) - cut].tolist() == golden[cut:]


SAMPLED = Sampling((1.0, 0.7, 0.0, 1.3), 16, STOPS, top_p=0.95, top_k=50, seed=3)


def test_a_draw_depends_on_nothing_beside_it():
    model, prompts = tiny(2), some_prompts()
    keys = [2**64 - 1 - index for index in range(len(prompts))]
    answers = [ids_of(generate(model, prompts, 5, SAMPLED, keys=keys, rows_at_once=rows)) for rows in (64, 1, 5)]
    assert answers[0] == answers[1] == answers[2]
    order = np.random.default_rng(4).permutation(len(prompts))
    other = generate(model, [prompts[i] for i in order], 5, SAMPLED, keys=[keys[i] for i in order], rows_at_once=7)
    assert ids_of(other) == [answers[0][i] for i in order]
    fewer = generate(model, prompts[3:5], 2, SAMPLED, keys=keys[3:5])
    assert ids_of(fewer) == [samples[:2] for samples in answers[0][3:5]]
    # Equal prompts under other keys, other samples and another seed draw something else.
    assert answers[0][-2] != answers[0][-1] and answers[0][0][0] != answers[0][0][4]
    reseeded = generate(model, prompts, 5, Sampling((1.0,), 16, STOPS, seed=4), keys=keys)
    assert ids_of(reseeded) != ids_of(generate(model, prompts, 5, Sampling((1.0,), 16, STOPS, seed=5), keys=keys))


def test_temperatures_go_round_the_samples():
    model, prompts = tiny(2), some_prompts((9, 4))
    answers = generate(model, prompts, 6, SAMPLED, keys=[1, 2, 3])
    for prompt, samples in zip(prompts, answers, strict=True):
        assert [answer.temperature for answer in samples] == [1.0, 0.7, 0.0, 1.3, 1.0, 0.7]
        assert samples[2].ids.tolist() == alone(model, prompt, 16)
    # A temperature near 0 is greedy, but for chance of less than e^-20.
    cold = generate(model, prompts, 1, Sampling((1e-3,), 16, STOPS), keys=[1, 2, 3])
    assert ids_of(cold) == [[alone(model, prompt, 16)] for prompt in prompts]


def test_logps_are_a_teacher_forced_forwards():
    model = tiny(2)
    prompts = some_prompts()
    for prompt, samples in zip(
        prompts, generate(model, prompts, 4, SAMPLED, keys=range(len(prompts)), rows_at_once=9), strict=True
    ):
        for answer in samples:
            row = torch.tensor(np.concatenate([prompt, answer.ids]))
            with torch.no_grad():
                logps = model(row[None], use_cache=False).logits[0].log_softmax(-1)
            wanted = logps[len(prompt) - 1 : -1].gather(1, torch.from_numpy(answer.ids)[:, None])[:, 0].numpy()
            assert answer.logps.dtype == np.float32 and answer.ids.dtype == np.int64
            np.testing.assert_allclose(answer.logps, wanted, atol=1e-5)


def chance(seen, wanted):
    """How likely a chi-square statistic at least this large is: the regularised upper incomplete gamma function."""
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    half = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)).item()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    model = tiny(2, vocab_size=12, initializer_range=0.1)
    prompt, count = np.array([3, 9, 4]), 4000
    answers = generate(model, [prompt], count, Sampling((temperature,), 2, frozenset()), keys=[11], rows_at_once=1000)
    ids = np.array(ids_of(answers)[0])
    with torch.no_grad():
        first = model(torch.tensor(prompt)[None]).logits[0, -1].double()
        each = torch.cat([torch.tensor(prompt).expand(12, -1), torch.arange(12)[:, None]], 1)
        second = model(each).logits[:, -1].double()
    first, second = (first / temperature).softmax(-1), (second / temperature).softmax(-1)
    assert chance(np.bincount(ids[:, 0], minlength=12), (first * count).numpy()) > 0.01
    both = (first[:, None] * second).flatten() * count
    seen = np.bincount(ids[:, 0] * 12 + ids[:, 1], minlength=144)
    usual = both.numpy() >= 5  # what the test is good for; the rest together
    seen = np.append(seen[usual], seen[~usual].sum())
    wanted = np.append(both.numpy()[usual], both.numpy()[~usual].sum())
    assert chance(seen, wanted) > 0.01


@pytest.mark.parametrize("top_k", [0, 1, 7, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
@pytest.mark.parametrize("flat", [False, True])
def test_top_k_and_top_p_leave_what_transformers_leaves(top_k, top_p, flat):
    scores = torch.randn(6, 3000, generator=torch.Generator().manual_seed(2)) * (0.01 if flat else 4)
    wanted = scores
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    ours = keep_top(scores, top_k, top_p)
    assert torch.equal(ours.isfinite(), wanted.isfinite())
    assert torch.equal(ours[ours.isfinite()], scores[ours.isfinite()])


def test_draws_stay_in_their_sets_at_any_number():
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(3)) * 3
    temperature = torch.full((64,), 0.8)
    kept = TopPLogitsWarper(0.7)(None, TopKLogitsWarper(20)(None, TemperatureLogitsWarper(0.8)(None, logits)))
    last = np.nextafter(1.0, 0.0)
    for number in (0.0, 1e-12, 0.25, 0.5, 0.999, 1 - 1e-12, last):
        tokens, _ = draw(logits, temperature, torch.full((64,), number, dtype=torch.float64), 20, 0.7)
        assert kept.gather(1, tokens[:, None]).isfinite().all()
        if number in (0.0, last):  # the first and the last word of the set
            words = kept.isfinite()
            edge = words.int().argmax(1) if number == 0.0 else 499 - words.flip(1).int().argmax(1)
            assert torch.equal(tokens, edge)


def test_the_drawn_word_is_where_the_distribution_passes_the_number():
    logits = torch.tensor([[0.5, 0.0, 0.2, 0.3]]).log()  # the second word has no probability at all
    for number, word in ((0.0, 0), (0.4999, 0), (0.5001, 2), (0.6999, 2), (0.7001, 3), (0.9999, 3)):
        token, logp = draw(logits, torch.ones(1), torch.tensor([number]).double())
        assert token.item() == word and logp.item() == pytest.approx(logits[0, word].item())


@pytest.mark.parametrize("words", [1, 127, 128, 129, 1000])
def test_a_draw_by_blocks_is_a_draw_from_the_whole(words):
    """Against one float64 cumulative sum over the vocabulary, with many words that have no odds at all."""
    random = torch.Generator().manual_seed(words)
    odds = torch.rand(500, words, generator=random) * (torch.rand(500, words, generator=random) < 0.3)
    odds[:, -1] += 1e-3
    numbers = torch.rand(500, generator=random, dtype=torch.float64)
    sums = odds.double().cumsum(1)
    wanted = torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)[:, 0]
    for edge in (0.0, np.nextafter(1.0, 0.0)):
        picked = pick(odds, torch.full((500,), edge, dtype=torch.float64))
        assert (odds.gather(1, picked[:, None]) > 0).all()
    assert torch.equal(pick(odds, numbers), wanted)


def test_random_numbers_are_their_own_for_every_seed_key_and_sample():
    base = uniforms(3, 5, 7, 100)
    assert np.array_equal(base[:10], uniforms(3, 5, 7, 10))
    for other in (uniforms(4, 5, 7, 100), uniforms(3, 6, 7, 100), uniforms(3, 5, 8, 100)):
        assert not np.isin(other, base).any()
    assert base.min() >= 0 and base.max() < 1 and abs(base.mean() - 0.5) < 0.1


def loss_gradients(model, peft, ids):
    peft.zero_grad()
    hidden = ragged_hidden(model.model, ids, Layout.of_rows([len(ids)]))
    model.lm_head(hidden).float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in peft.named_parameters() if p.requires_grad}


def test_training_goes_on_as_if_nothing_had_been_written(tmp_path):
    """Modes, gradients and the active adapter; on a 4-bit base an evaluation must not repack the weights."""
    model, peft = nf4_with_lora(tmp_path)
    peft.train()
    model.model.layers[1].eval()  # a mixed state has to come back as it was
    modes = [module.training for module in peft.modules()]
    ids = torch.arange(9, 40)
    before = loss_gradients(model, peft, ids)
    trainable = [p.requires_grad for p in peft.parameters()]
    prompts = some_prompts()
    answers = ids_of(generate(model, prompts, 2, SAMPLED, keys=range(len(prompts))))
    assert [module.training for module in peft.modules()] == modes
    assert [p.requires_grad for p in peft.parameters()] == trainable
    after = loss_gradients(model, peft, ids)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with peft.disable_adapter():
        assert ids_of(generate(model, prompts, 2, SAMPLED, keys=range(len(prompts)))) != answers
    assert ids_of(generate(model, prompts, 2, SAMPLED, keys=range(len(prompts)))) == answers


def test_heads_that_are_trained_or_adapted_are_used():
    prompts = some_prompts()
    for settings in ({"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}):
        model = tiny(2)
        config = LoraConfig(r=4, **({"target_modules": "all-linear", "init_lora_weights": False} | settings))
        peft = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lm_head" in name and parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)) * 0.3)
        answers = ids_of(generate(model, prompts, 2, greedy(12), keys=range(len(prompts))))
        assert answers == [[alone(model, prompt, 12)] * 2 for prompt in prompts]
        assert answers != ids_of(generate(tiny(2), prompts, 2, greedy(12), keys=range(len(prompts))))


def test_dropout_is_off_while_writing():
    model = tiny(2, attention_dropout=0.5)
    prompts = some_prompts()
    quiet = ids_of(generate(model, prompts, 2, SAMPLED, keys=range(len(prompts))))
    model.train()
    assert ids_of(generate(model, prompts, 2, SAMPLED, keys=range(len(prompts)))) == quiet
    assert model.training


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_bfloat16(autocast):
    model = tiny(2)
    prompts = some_prompts()
    exact = generate(model, prompts, 2, greedy(10), keys=range(len(prompts)))
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        rough = generate(model, prompts, 2, greedy(10), keys=range(len(prompts)), rows_at_once=5)
    pairs = [(a, b) for left, right in zip(exact, rough, strict=True) for a, b in zip(left, right, strict=True)]
    same = sum(int(a.ids[0] == b.ids[0]) for a, b in pairs)
    assert same >= 0.8 * len(pairs)  # 8 bits of mantissa: near ties may fall the other way
    assert all(np.isfinite(b.logps).all() for _, b in pairs)
    assert max(abs(a.logps[0] - b.logps[0]) for a, b in pairs if a.ids[0] == b.ids[0]) < 0.1


def test_progress_counts_answers_and_tokens():
    model, prompts, seen = tiny(2), some_prompts(), []
    answers = generate(
        model, prompts, 3, SAMPLED, keys=range(len(prompts)), rows_at_once=4, progress=lambda *n: seen.append(n)
    )
    assert seen == sorted(seen) and len(seen) > 10
    assert seen[-1] == (3 * len(prompts), sum(len(a.ids) for samples in answers for a in samples))


def streamed(stream):
    """Every answer of a stream, and how its ids grew: [(sample, ids so far)] after each step."""
    answers, grown = {}, []
    while True:
        answers |= stream.step()
        grown.append({sample: list(ids) for sample, ids in stream.writing.items()})
        if not stream.writing:
            return answers, grown


@pytest.mark.parametrize("samples", [1, 5])
def test_a_stream_writes_what_generate_writes(samples):
    model, prompts = tiny(2), some_prompts((5, 33, 1))
    keys = [7, 2**64 - 1, 3, 9]
    wanted = generate(model, prompts, samples, SAMPLED, keys=keys)
    for prompt, key, together in zip(prompts, keys, wanted, strict=True):
        answers, grown = streamed(Stream(model, prompt, SAMPLED, key=key, samples=samples))
        assert sorted(answers) == list(range(samples))
        for sample, answer in enumerate(together):
            found = answers[sample]
            assert found.ids.tolist() == answer.ids.tolist() and found.finished == answer.finished
            np.testing.assert_allclose(found.logps, answer.logps, atol=1e-5)
            # one token more after every step, and gone with the last
            so_far = [written[sample] for written in grown if sample in written]
            assert so_far == [answer.ids[: n + 1].tolist() for n in range(len(answer.ids) - 1)]


def test_streams_of_different_adapters_take_turns(tmp_path):
    """As different as their adapters, and each as it is alone; the base without an adapter too."""
    model, peft = nf4_with_lora(tmp_path)
    torch.manual_seed(2)
    peft.add_adapter("other", LoraConfig(r=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    peft.eval()
    prompt, names = some_prompts((12,))[0], ("default", "other", None)

    def active(name):
        if name is None:
            return peft.disable_adapter()
        peft.set_adapter(name)
        return contextlib.nullcontext()

    alone = {}
    for name in names:
        with active(name):
            (alone[name],) = ids_of(generate(model, [prompt], 2, SAMPLED, keys=[5]))
    assert len({str(ids) for ids in alone.values()}) == 3
    streams = {name: Stream(model, prompt, SAMPLED, key=5, samples=2) for name in names}
    found = {name: {} for name in names}
    while streams:
        for name, stream in list(streams.items()):
            with active(name):
                found[name] |= stream.step()
            if not stream.writing:
                del streams[name]
    assert {name: [found[name][i].ids.tolist() for i in range(2)] for name in names} == alone


def test_a_stream_refuses_what_makes_no_sense():
    model = tiny(2)
    with pytest.raises(ValueError, match="without tokens"):
        Stream(model, np.empty(0, np.int64), SAMPLED)
    with pytest.raises(ValueError, match="at least 1"):
        Stream(model, np.array([9]), SAMPLED, samples=0)


def test_a_prompt_may_have_a_limit_of_its_own():
    """As if it were asked alone with that many tokens; the others do not notice."""
    model, prompts = tiny(2), some_prompts()
    keys, limits = list(range(len(prompts))), [3, 20, 1, 7, 99, 5, 20, 2, 4]
    whole = generate(model, prompts, 2, SAMPLED, keys=keys)
    cut = generate(model, prompts, 2, SAMPLED, keys=keys, limits=limits)
    most = [min(limit, SAMPLED.max_new_tokens) for limit in limits]
    assert ids_of(cut) == [[ids[:n] for ids in answers] for answers, n in zip(ids_of(whole), most, strict=True)]
    assert any(not answer.finished and len(answer.ids) == n for a, n in zip(cut, most, strict=True) for answer in a)


def test_no_prompts_no_answers():
    assert generate(tiny(2), [], 3, SAMPLED, keys=[]) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_model_is_told(temperature, bad):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[5, 3] = bad
    with pytest.raises(DivergedError, match="logits are not finite behind 5 tokens"):
        generate(model, some_prompts((5,)), 2, Sampling((temperature,), 4, STOPS), keys=[1, 2])


def test_what_makes_no_sense_is_refused():
    model, prompts = tiny(2), some_prompts((3,))
    with pytest.raises(ValueError, match="need as many keys"):
        generate(model, prompts, 1, SAMPLED, keys=[1])
    with pytest.raises(ValueError, match="at least 1"):
        generate(model, prompts, 0, SAMPLED, keys=[1, 2])
    with pytest.raises(ValueError, match="without tokens"):
        generate(model, [np.empty(0, np.int64)], 1, SAMPLED, keys=[1])

import html
import json
import re
import shutil

import pytest
from finished_runs import NASTY, chain, data, jsonl, sft_run, whole_run
from page_reader import read
from release.made_runs import make_base, make_merged

from finetune.errors import InputError
from finetune.plan.evaluations import Evaluation, keep_evaluation
from finetune.reports.calibration import ScoredPairs, reward_report
from finetune.reports.page import page, recipe_page, run_page
from finetune.reports.pieces import Html
from finetune.reports.read import read_run
from finetune.reports.sections import Section
from finetune.reports.words import few_held_out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def whole(folders):
    return recipe_page("chat", [read_run(folder) for folder in folders.values()], {"dpo": "dpo"})


def test_a_page_stands_alone_and_escapes_all_that_it_is_given(whole):
    found = read(whole)
    assert whole.startswith("<!doctype html>") and 'lang="en"' in whole
    assert all(address.startswith("data:") for address in found.fetched) and len(found.fetched) > 4
    assert "script" not in found.tags and NASTY.split(" ")[0] in found.words
    assert not re.search(r"https?://(?!www\.w3\.org)", whole) and "@import" not in whole and "url(" not in whole
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links} <= set(found.ids)
    assert "\x07" not in whole


def test_a_recipe_page_tells_of_every_stage_in_order(whole):
    words = read(whole).words
    places = [whole.index(f'<h2 id="stage-{name}"') for name in ("sft", "helpful", "best", "ppo")]
    assert places == sorted(places)
    assert "Not finished: dpo" in words
    assert "4 finished stages" in words
    # what no other stage has read is what the chain was for
    assert "<li><strong>ppo</strong>: The mean reward on held-out prompts rose from 1 to 5.5, 0.75 nats" in whole
    assert "<li><strong>best</strong>" in whole and "<li><strong>sft</strong>" not in whole


def test_results_are_told_in_words(folders):
    told = {name: read(run_page(read_run(folder))).words for name, folder in folders.items()}
    assert "the loss fell from 3 to 0.5 nats a token" in told["sft"]
    assert "Of 40 held-out pairs it gives the better answer the higher score in" in told["helpful"]
    assert "One sampled answer scores 0.5 on average, the best of 2 scores 2." in told["best"]
    assert "9 rows were kept of 9 prompts." in told["best"]
    assert "1 min 1 s" in told["sft"]


def test_a_result_that_got_worse_is_not_hidden(tmp_path):
    metrics = {"steps": 2, "first_held_out": 0.5, "held_out": 0.75}
    folder = sft_run(tmp_path / "runs", make_base(tmp_path / "base"), metrics=metrics)
    assert "the loss rose from 0.5 to 0.75" in read(run_page(read_run(folder))).words
    nothing = sft_run(tmp_path / "more", make_base(tmp_path / "b2"), metrics={"first_loss": 2.0, "last_loss": 1.0})
    assert "nothing was held out" in read(run_page(read_run(nothing))).words


def test_few_held_out_rows_are_said_plainly_and_the_interval_stands_in_the_summary(tmp_path):
    base = make_base(tmp_path / "base")
    one = reward_report(ScoredPairs([1.0], [0.0], [3], [4]))
    about = {"held_out_report": one, "metrics": {"steps": 1}, "data": data(held_out_rows=1, train_rows=1)}
    run = read_run(whole_run(tmp_path / "runs", base, "helpful", "reward", **about))
    words = read(run_page(run)).words
    assert "helpful: only 1 comparison was held out: with fewer than 20 the held-out figures say little" in words
    assert "Held-out accuracy 100.0 % 95 % interval 20.7 % to 100.0 %" in words
    assert "Of 1 held-out pair it gives" in words and ": 1 comparison, " in words
    assert "held-out accuracy 100.0 % (95 % interval 20.7 % to 100.0 %)" in read(recipe_page("r", [run], {})).words
    for count, said in ((0, False), (1, True), (19, True), (20, False)):
        rows = sft_run(tmp_path / f"n{count}", base, data=data(held_out_rows=count))
        assert ("held out: with fewer than" in read(run_page(read_run(rows))).words) == said, count
    assert few_held_out({"kind": "ppo", "data": {"held_out_prompts": 2}}).startswith("only 2 prompts were held out")


def test_data_says_what_was_left_out_how_long_rows_are_and_what_is_trained(folders):
    words = read(run_page(read_run(folders["sft"]))).words
    assert "longer than 64 tokens 3 demo.jsonl:7 (80) …" in words
    assert "25.0 % of the tokens are trained, 75.0 % are only read (225 of 900)" in words
    assert "demo.jsonl" in words and "held_out.jsonl (held out)" in words
    assert "16 to 31 5 32 to 63 12" in words
    assert "exact duplicates 2" in words


def test_curves_are_those_that_the_log_has(folders):
    sft, ppo = (run_page(read_run(folders[name])) for name in ("sft", "ppo"))
    assert all(f">{title}</text>" in sft for title in ("Loss", "Learning rate", "Speed"))
    assert ">Reward</text>" not in sft and ">held out</text>" in sft
    assert all(f">{title}</text>" in ppo for title in ("Reward", "KL to the reference", "Entropy", "Reward against KL"))
    assert "held out from 1 to 5.5" in ppo  # what was measured after the last step is in the manifest alone
    assert "The same at every step: peak memory 1.5" in sft and ">Peak memory</text>" not in sft


def test_a_reward_models_page_has_its_slices_and_pictures(folders):
    content = run_page(read_run(folders["helpful"]))
    words = read(content).words
    assert "rated better" in words and "topic: odd" in words and "calibration error" in words
    assert content.count("<img ") == 5
    alts = re.findall(r'<img alt="([^"]+)"', content)
    assert alts[0].startswith("Reliability") and all(alts)


def test_samples_are_shown_beside_what_they_are_compared_with(folders):
    best, ppo = (read(run_page(read_run(folders[name]))).words for name in ("best", "ppo"))
    assert "kept, score 2 good 0 lowest of 2, score -1 poor 0" in best
    assert "before, reward 0.5" in ppo and "after step 6, reward 3.25" in ppo
    assert "Step by step Ask 0" in ppo and "step reward answer 0 0.5 hm" in ppo and "3 1.5 well" in ppo
    assert "user Ask 0" in ppo and "prompt Ask 2" in ppo and "prompts.jsonl:" not in ppo
    assert "kl is large" in ppo


def test_kept_rows_without_samples(folders, tmp_path):
    rows = jsonl([{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}])
    folder = whole_run(tmp_path / "runs", make_base(tmp_path / "base"), "best", "reject", files={"rows.jsonl": rows})
    words = read(run_page(read_run(folder))).words
    assert "user Why? assistant So." in words


def test_answers_and_evaluations_are_on_the_page(tmp_path):
    folder = sft_run(tmp_path / "runs", make_base(tmp_path / "base"))
    assert "Answers before and after" not in run_page(read_run(folder))
    rows = [{"prompt": f"Ask {n}?", "messages": None, "base": "Well.", "sft": f"Well {n}. {NASTY}"} for n in range(9)]
    rows[0]["expected"] = "Right."
    keep_evaluation(folder, Evaluation("answers", {"name": "own rows"}, {"temperature": 0.0, "max_new_tokens": 64},
                                       {"names": ["base", "sft"]}, rows))  # fmt: skip
    results = {
        "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
        "by_kind": {"short": {"value": 1.0}},
        "unfinished": 3,
    }
    keep_evaluation(folder, Evaluation("gsm8k", {"name": "gsm8k.jsonl", "rows": 80}, {}, results, seconds=61.0))
    keep_evaluation(folder, Evaluation("win_rate", {"name": "p.jsonl"}, {}, {"win_rate": 0.7, "judge": "<b>"},
                                       against={"name": "chat/dpo"}))  # fmt: skip
    gap = {"difference": {"value": -0.25, "low": -0.5, "high": -0.125}}
    keep_evaluation(folder, Evaluation("loss", {"name": "p.jsonl"}, {}, gap, against={"name": "chat/sft0"}))
    content = run_page(read_run(folder))
    words = read(content).words
    assert "this run minus chat/sft0 -0.25 -0.5 to -0.125" in words
    assert "Greedy answers of at most 64 tokens to own rows." in words
    assert content.count("<article") == 9 and "3 more" in words
    assert words.count("expected Right.") == 1 and words.index("expected Right.") < words.index("base Well.")
    assert "<mark>Right" not in content  # it stands apart: marked is what the run changed
    older = Evaluation("answers", {"name": "other rows"}, {}, {"names": ["base", "sft"]}, rows[:1], made="2020")
    keep_evaluation(folder, older)
    words = read(run_page(read_run(folder))).words
    assert words.index("to own rows.") < words.index("to other rows.")
    assert "gsm8k on gsm8k.jsonl, 80 rows, made" in words and "in 1 min 1 s" in words
    assert "accuracy 50.0 % 40.0 % to 60.0 %" in words and "by kind" in words and "short 100.0 %" in words
    assert "unfinished 3" in words and "win rate on p.jsonl, against chat/dpo" in words
    assert "win rate 0.7" in words and "<b>" not in content


def test_how_to_make_it_again_loads_as_a_recipe(folders):
    import yaml

    content = run_page(read_run(folders["sft"]))
    written = re.search(r'aria-label="recipe.yaml"><code>(.*?)</code>', content, re.DOTALL)[1]
    manifest = json.loads((folders["sft"] / "manifest.json").read_text())
    assert yaml.safe_load(html.unescape(written)) == manifest["recipe"]
    words = read(content).words
    assert "finetune run recipe.yaml --until sft" in words and f"finetune verify {folders['sft']}" in words
    assert "--set stages.sft.train.epochs=2.0" in words
    assert manifest["fingerprint"] in content and manifest["data"]["sources"][0]["digest"] in content


def test_long_texts_are_cut_aloud(tmp_path):
    folder = sft_run(tmp_path / "runs", make_base(tmp_path / "base"))
    rows = [{"prompt": "p" * 5000, "base": "word " * 4000, "sft": "word " * 5000}]
    keep_evaluation(folder, Evaluation("answers", {}, {}, {"names": ["base", "sft"]}, rows))
    content = run_page(read_run(folder))
    assert "(2,000 more characters)" in content and len(content) < 120_000


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 1.0}\n{"step": 2, "lo'),
         "metrics.jsonl: line 2 cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"), "there are no curves"),
        (lambda run: (run / "metrics.jsonl").write_text('[1]\n{"step": "x", "loss": null}\n{"loss": NaN, "step": 1}\n'),
         "metrics.jsonl has"),
        (lambda run: (run / "reliability.svg").write_text("<svg"), "reliability.svg is not a whole picture"),
        (lambda run: (run / "scores.svg").unlink(), "scores.svg is missing"),
        (lambda run: (run / "evaluations").mkdir() or (run / "evaluations" / "x-1.json").write_text("{"),
         "is not an evaluation"),
    ],
    ids=["no log", "cut log", "binary log", "odd log", "cut picture", "no picture", "bad evaluation"],
)  # fmt: skip
def test_what_is_damaged_is_one_note_and_the_page_goes_on(folders, tmp_path, harm, said):
    run = shutil.copytree(folders["helpful"], tmp_path / "run")
    harm(run)
    content = run_page(read_run(run))
    notes = re.findall(r'<p class="ft-note" role="note">(.*?)</p>', content)
    assert sum(said in html.unescape(note) for note in notes) == 1, notes
    assert "On held-out pairs" in content and ">nan<" not in content.lower()


@pytest.mark.parametrize("lost", ["data", "metrics", "environment", "recipe", "base", "family", "resolved", "settings",
                                  "inputs", "files", "seconds", "finished"])  # fmt: skip
@pytest.mark.parametrize("stage", ["sft", "helpful", "best", "ppo"])
def test_an_old_manifest_without_a_section_is_shown(folders, tmp_path, stage, lost):
    shutil.copytree(folders[stage], tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest.pop(lost, None)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    run = read_run(tmp_path / "run")
    assert run_page(run).count("<h1>") == 1 and recipe_page("r", [run], {})


def test_a_merged_folder_has_a_page(folders, tmp_path):
    merged = make_merged(tmp_path / "merged", folders["sft"])
    words = read(run_page(read_run(merged))).words
    assert "Merged model" in words and "made from sft" in words


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(InputError, match="no such run or recipe"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "x.part").mkdir()
    with pytest.raises(InputError, match="is not finished"):
        read_run(tmp_path / "x.part")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        read_run(tmp_path)


def test_stages_of_rounds_have_places_of_their_own(tmp_path):
    base = make_base(tmp_path / "base")
    runs = [read_run(sft_run(tmp_path / "runs", base, stage)) for stage in ("sft.1", "sft.2", "sft-1")]
    found = read(recipe_page("rounds", runs, {}))
    assert len(found.ids) == len(set(found.ids)) and {link[1:] for link in found.links} <= set(found.ids)
    assert "stage-sft.2" in found.ids


def test_headings_of_a_page_are_its_contents():
    content = page("T", Html(""), [Section("a", "One & two", Html("x")), Section("b", "Three", Html("y"), 3)])
    assert re.findall(r'<li class="level-(\d)"><a href="#(\w)">(.*?)</a>', content) == [
        ("2", "a", "One &amp; two"), ("3", "b", "Three"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "metrics", "said"),
    [
        ("average", {"adapters": 3, "rank": 8, "distance": 0.5}, "The mean of 3 adapters; nothing was trained."),
        ("grpo", {"steps": 3, "reward_first": 0.5, "reward_last": 0.75}, "The mean reward rose from 0.5 to 0.75."),
        (
            "dpo",
            {"held_out_metrics": {"accuracy": 0.75}},
            "In 75.0 % of the held-out comparisons it favours the better",
        ),
        ("dpo", {}, "No result is recorded."),
        ("gguf", {}, "GGUF export"),
        ("new_kind", {"held_out": 1.0}, "New_kind on"),
    ],
)
def test_every_kind_has_words(tmp_path, kind, metrics, said):
    folder = whole_run(tmp_path / "runs", make_base(tmp_path / "base"), "one", kind, metrics=metrics)
    assert said in read(run_page(read_run(folder))).words


def test_names_of_another_log_are_drawn_too(tmp_path):
    lines = [{"step": n, "rewards/helpful/mean": n / 2, "text": "x", "flag": True, "kl": 0.1} for n in range(1, 5)]
    folder = whole_run(tmp_path / "runs", make_base(tmp_path / "base"), "g", "grpo",
                       files={"metrics.jsonl": jsonl(lines)})  # fmt: skip
    content = run_page(read_run(folder))
    assert (
        ">Rewards: helpful: mean</text>" in content and ">Flag</text>" not in content and ">Text</text>" not in content
    )

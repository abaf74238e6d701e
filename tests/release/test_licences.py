"""Every duty of every licence, on Meta's own texts from ../shared/licences where they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import COPIES, licence_text, llama, make_base, make_merged, make_rows, make_run, source

from finetune.errors import InputError
from finetune.families.base import GENERATIONS
from finetune.release.bundle import release_format
from finetune.release.duties import Duties
from finetune.release.licences import HUB_IDS, LICENCES, check_copy, name_problem, recognise
from finetune.release.lineage import trace
from finetune.release.publish import PublishSettings, find_duties
from finetune.release.terms import read_terms

COMMUNITY = [id for id in LICENCES if id != "llama1"]


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def duties_of(folder: Path, runs: Path, **settings: Any) -> Duties:
    found = find_duties(
        trace(folder, manifest_of(folder), runs),
        PublishSettings(to="me/x", runs=runs, **settings),
        network=False,
        say=lambda line: None,
    )
    found.check(holds_weights=release_format(manifest_of(folder)) in ("gguf", "transformers"))
    return found


def squeezed(text: str) -> str:
    return "".join(text.split()).replace("\u201c", '"').replace("\u201d", '"')


def test_every_generation_has_its_licence() -> None:
    assert set(GENERATIONS) <= set(LICENCES)
    for name, generation in GENERATIONS.items():
        assert generation.licence == ("other" if name == "llama1" else LICENCES[name].id)
    assert set(COMMUNITY) <= HUB_IDS  # all of them are licences that the hub knows


@pytest.mark.parametrize("id", COPIES)
def test_what_the_table_says_stands_in_metas_text(shared: Path, id: str) -> None:
    """Notice, display, name, date, use policy and the rule for output, word by word."""
    licence, text = LICENCES[id], squeezed(licence_text(shared, id))
    assert recognise(licence_text(shared, id)) == id
    check_copy(licence, licence_text(shared, id), "LICENSE")
    for words in (licence.notice, licence.built_with, licence.released):
        assert words is None or squeezed(words) in text
    assert licence.policy is not None and licence.policy.removeprefix("https://") in text
    assert "700millionmonthlyactiveusers" in text
    name_rule = f'include"{squeezed(licence.begins_with or "Llama")}"atthebeginningofanysuchAImodelname'
    assert (name_rule in text) == (licence.begins_with is not None)
    assert ("improveanyotherlargelanguagemodel" in text) != licence.others_may_learn
    assert ("oranyoutputsorresultsoftheLlamaMaterialstocreate,train" in text) == licence.by_outputs
    assert (licence.built_with is None) == ("prominentlydisplay" not in text)


@pytest.mark.parametrize("id", COMMUNITY)
def test_a_release_carries_copy_notice_policy_and_display(tmp_path: Path, shared: Path, id: str) -> None:
    base = llama(tmp_path, shared, id)
    run = make_run(tmp_path / "runs", base, generation="llama2" if id == "llama2" else "llama3.1")
    duties = duties_of(run, tmp_path / "runs")
    files = duties.files()
    assert files["LICENSE"] == base / "LICENSE"
    assert files["USE_POLICY.md"] == base / "USE_POLICY.md"
    assert files["Notice"] == f"{LICENCES[id].notice}\n".encode()
    assert duties.metadata == {"license": id}
    display = {"llama2": [], "llama3": ["Built with Meta Llama 3"]}.get(id, ["Built with Llama"])
    assert duties.built_with == display


@pytest.mark.parametrize(
    ("id", "name", "better"),
    [
        ("llama2", "chat", None),
        ("llama3", "chat", "Llama-3-chat"),
        ("llama3", "Llama-chat", "Llama-3-chat"),
        ("llama3", "Llama-30b-chat", "Llama-3-30b-chat"),
        ("llama3", "Meta-Llama-3-8B-chat", "Llama-3-8B-chat"),
        ("llama3", "Llama-3-8B-chat", None),
        ("llama3.1", "chat", "Llama-chat"),
        ("llama3.1", "meta-llama-3.1-chat", "Llama-3.1-chat"),
        ("llama3.1", "Llama-3.1-8B-chat", None),
        ("llama3.2", "my-Llama", "Llama-my-Llama"),
        ("llama3.3", "Llamachat", None),
        ("llama4", "scout-chat", "Llama-scout-chat"),
    ],
)
def test_names(tmp_path: Path, shared: Path, id: str, name: str, better: str | None) -> None:
    base = llama(tmp_path, shared, id)
    run = make_run(tmp_path / "runs", base, generation="llama2" if id == "llama2" else "llama3.1")
    duties = duties_of(run, tmp_path / "runs")
    if better is None:
        duties.check_name(name)
        return
    assert name_problem(LICENCES[id], better) is None
    with pytest.raises(InputError, match=f"For example: {better}$"):
        duties.check_name(name)


@pytest.mark.parametrize("id", COMMUNITY)
def test_no_copy_no_release(tmp_path: Path, id: str) -> None:
    base = make_base(tmp_path / "base", words=32000 if id == "llama2" else 128256, readme=f"license: {id}")
    run = make_run(tmp_path / "runs", base, generation="llama2" if id == "llama2" else "llama3.1")
    with pytest.raises(InputError, match=r"everybody who gets the model has to get a copy.*USE_POLICY.md that Meta"):
        duties_of(run, tmp_path / "runs")


def test_a_copy_that_was_cut_short_is_refused(tmp_path: Path, shared: Path) -> None:
    base = make_base(tmp_path / "base", words=128256, licence=licence_text(shared, "llama3.1")[:3000])
    with pytest.raises(InputError, match=r"LICENSE is not the whole text of the Llama 3\.1 Community License"):
        duties_of(make_run(tmp_path / "runs", base), tmp_path / "runs")


@pytest.mark.parametrize(("words", "looks"), [(128256, "looks like Llama 3.1"), (512, "is not known")])
def test_a_base_that_says_nothing_is_refused_with_the_way_out(tmp_path: Path, words: int, looks: str) -> None:
    run = make_run(tmp_path / "runs", make_base(tmp_path / "base", words=words))
    with pytest.raises(InputError, match=rf"{looks}.*into .*base.*--license ID"):
        duties_of(run, tmp_path / "runs")


def test_a_base_of_ones_own_is_under_what_its_maker_says(tmp_path: Path) -> None:
    told = make_run(tmp_path / "a", make_base(tmp_path / "told"))
    assert duties_of(told, tmp_path, licence="mit").metadata == {"license": "mit"}
    by_readme = make_run(tmp_path / "b", make_base(tmp_path / "readme", readme="license: apache-2.0"))
    assert duties_of(by_readme, tmp_path).metadata == {"license": "apache-2.0"}
    base = make_base(tmp_path / "text", licence="MIT License\n\nCopyright (c) 2023 Somebody\n\nPermission is …")
    duties = duties_of(make_run(tmp_path / "c", base), tmp_path)
    assert duties.metadata == {"license": "mit"}
    assert duties.files() == {"LICENSE": base / "LICENSE"}  # it asks for a copy too; a Notice is Meta's own idea
    assert duties.built_with == []


def test_a_licence_that_the_hub_does_not_know_goes_by_its_name(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", licence="House rules\n\nBe kind.")
    duties = duties_of(make_run(tmp_path / "runs", base), tmp_path, licence="house-rules")
    assert duties.metadata == {"license": "other", "license_name": "house-rules", "license_link": "LICENSE"}


def test_the_publisher_cannot_give_away_what_is_not_his(tmp_path: Path, shared: Path) -> None:
    run = make_run(tmp_path / "a", llama(tmp_path, shared, "llama2"), generation="llama2")
    with pytest.raises(InputError, match=r"--license mit: but .* is under llama2, says LICENSE"):
        duties_of(run, tmp_path, licence="mit")
    tuned = make_base(
        tmp_path / "tuned", words=128256, readme="license: apache-2.0\nbase_model: meta-llama/Llama-3.1-8B"
    )
    with pytest.raises(InputError, match=r"comes from meta-llama/Llama-3.1-8B"):
        duties_of(make_run(tmp_path / "b", tuned), tmp_path)
    with pytest.raises(InputError, match=r"--license apache-2.0: .* under a licence of Meta's"):
        duties_of(make_run(tmp_path / "c", tuned), tmp_path, licence="apache-2.0")


def test_a_licence_in_the_wrong_folder_is_noticed(tmp_path: Path, shared: Path) -> None:
    base = make_base(tmp_path / "base", words=128256, licence=licence_text(shared, "llama2"))
    with pytest.raises(
        InputError, match=r"has the tokenizer of llama3.1, but LICENSE in the base's folder says llama2"
    ):
        duties_of(make_run(tmp_path / "runs", base), tmp_path)


def test_3_1_and_3_3_have_one_config_and_the_licence_tells_them_apart(tmp_path: Path, shared: Path) -> None:
    run = make_run(tmp_path / "runs", llama(tmp_path, shared, "llama3.3"), generation="llama3.1")
    assert duties_of(run, tmp_path / "runs").metadata == {"license": "llama3.3"}


def test_llama_1_is_for_research_and_its_weights_stay(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", words=32000)
    run = make_run(tmp_path / "runs", base, generation="llama1")
    duties = duties_of(run, tmp_path / "runs", licence="llama1")
    assert duties.metadata == {"license": "other", "license_name": "llama1"}
    assert not duties.licences[0].commercial
    with pytest.raises(InputError, match=r"may not be passed on.*publish the adapter instead"):
        duties_of(make_merged(tmp_path / "merged", run), tmp_path / "runs", licence="llama1")


def test_multimodal_models_and_the_european_union(tmp_path: Path, shared: Path) -> None:
    base = llama(tmp_path, shared, "llama3.2")
    for architecture, expected in (("LlamaForCausalLM", False), ("MllamaForConditionalGeneration", True)):
        manifest = manifest_of(make_run(tmp_path / architecture, base))
        manifest["base"]["architecture"] = [architecture]
        assert read_terms(base, manifest).is_multimodal == expected
    assert [id for id in COMMUNITY if LICENCES[id].eu_multimodal] == ["llama3.2", "llama3.3", "llama4"]


# --- what a model's output may train ---


def rows_then_sft(tmp_path: Path, writer: Path, learner: Path, writer_is: str, learner_is: str) -> Path:
    """Rows sampled in one recipe, and read by another as a plain file: known again by their content."""
    rows = make_rows(tmp_path / "runs", writer, recipe="teacher", generation=writer_is)
    digest = manifest_of(rows)["files"]["rows.jsonl"]["sha256"]
    sources = [source("some/copy.jsonl", f"sha256:{digest}")]
    return make_run(tmp_path / "runs", learner, recipe="pupil", generation=learner_is, sources=sources)


@pytest.mark.parametrize(("writer", "learner"), [("llama2", "llama3.1"), ("llama3", "llama3.1"), ("llama3", "llama2")])
def test_output_of_llama_2_and_3_may_not_train_another_family(
    tmp_path: Path, shared: Path, writer: str, learner: str
) -> None:
    bases = llama(tmp_path, shared, writer), llama(tmp_path, shared, learner)
    run = rows_then_sft(tmp_path, *bases, writer, learner)
    with pytest.raises(InputError, match=rf"teacher/best: these rows were written by base-{writer}.*forbids"):
        duties_of(run, tmp_path / "runs")


@pytest.mark.parametrize("same", ["llama2", "llama3"])
def test_output_may_train_the_same_family(tmp_path: Path, shared: Path, same: str) -> None:
    base = llama(tmp_path, shared, same)
    run = rows_then_sft(tmp_path, base, base, same, same)
    assert [writer.licence for writer in duties_of(run, tmp_path / "runs").writers] == [same]


def test_output_of_3_1_may_train_others_and_asks_for_a_name(tmp_path: Path, shared: Path) -> None:
    own = make_base(tmp_path / "own", readme="license: mit")
    run = rows_then_sft(tmp_path, llama(tmp_path, shared, "llama3.1"), own, "llama3.1", "llama2")
    duties = duties_of(run, tmp_path / "runs")
    assert duties.metadata == {"license": "mit"}  # the model itself is not Meta's
    assert duties.built_with == []
    duties.check_name("Llama-pupil")
    with pytest.raises(InputError, match=r'learnt from the output of Llama 3.1, whose licence wants "Llama"'):
        duties.check_name("pupil")


def test_rows_of_a_stage_of_the_same_recipe_carry_their_writer(tmp_path: Path, shared: Path) -> None:
    base, runs = llama(tmp_path, shared, "llama3.1"), tmp_path / "runs"
    first = make_run(runs, base, "sft")
    rows = make_rows(runs, base, inputs={"sft": first}, settings={"policy": "sft"})
    second = make_run(runs, base, "sft2", inputs={"best": rows}, settings={"data": [{"stage": "best"}]})
    lineage = trace(second, manifest_of(second), runs)
    assert [member.label for member in lineage.members] == ["chat/sft", "chat/best", "chat/sft2"]
    assert [link.role for link in lineage.links] == ["policy", "rows"]
    assert [(w.label, w.licence) for w in duties_of(second, runs).writers] == [("chat/best", "llama3.1")]


def test_a_reward_model_that_only_scored_wrote_nothing(tmp_path: Path, shared: Path) -> None:
    base, runs = llama(tmp_path, shared, "llama2"), tmp_path / "runs"
    judge = make_run(runs, base, "helpful", "reward", generation="llama2")
    settings = {"reward": "helpful"}
    policy = make_run(runs, base, "ppo", "ppo", generation="llama2", inputs={"helpful": judge}, settings=settings)
    assert duties_of(policy, runs).writers == ()


def test_what_the_publisher_says_of_other_data_counts(tmp_path: Path, shared: Path) -> None:
    run = make_run(tmp_path / "runs", llama(tmp_path, shared, "llama3.1"))
    with pytest.raises(InputError, match=r"data from outside: .* a model under llama2, and the Llama 2 Community"):
        duties_of(run, tmp_path / "runs", written_by=("llama2",))
    assert duties_of(run, tmp_path / "runs", written_by=("llama3.3",)).writers[0].licence == "llama3.3"


def test_several_bases_owe_all_of_it_together(tmp_path: Path, shared: Path) -> None:
    runs = tmp_path / "runs"
    one = make_run(runs, llama(tmp_path, shared, "llama3"), recipe="one", generation="llama3")
    two = make_run(runs, llama(tmp_path, shared, "llama3.1"), recipe="two")
    duties = duties_of(make_merged(tmp_path / "merged", one, two), runs)
    files = duties.files()
    assert {"LICENSE-llama3", "LICENSE-llama3.1", "USE_POLICY-llama3.md", "USE_POLICY-llama3.1.md"} <= set(files)
    notice = files["Notice"]
    assert isinstance(notice, bytes) and notice.decode().splitlines() == [
        LICENCES["llama3"].notice,
        LICENCES["llama3.1"].notice,
    ]
    assert duties.built_with == ["Built with Meta Llama 3", "Built with Llama"]
    assert duties.metadata["license"] == "other"
    assert duties.metadata["license_name"] == "llama3-and-llama3.1"
    with pytest.raises(InputError, match=r"For example: Llama-3-chat"):
        duties.check_name("Llama-chat")  # right for 3.1, not for 3
    duties.check_name("Llama-3-chat")


# --- lineage ---


def test_a_missing_stage_is_no_lineage(tmp_path: Path, shared: Path) -> None:
    base, runs = llama(tmp_path, shared, "llama3.1"), tmp_path / "runs"
    first = make_run(runs, base, "sft")
    second = make_run(runs, base, "dpo", "dpo", inputs={"sft": first}, settings={"start_from": "sft"})
    first.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"chat/dpo was made from stage sft .* Put that run's folder back"):
        trace(second, manifest_of(second), runs)
    (tmp_path / "elsewhere" / "chat").mkdir(parents=True)
    (tmp_path / "away").rename(tmp_path / "elsewhere" / "chat" / "sft")
    assert len(trace(second, manifest_of(second), tmp_path / "elsewhere").members) == 2


def test_the_base_is_found_again_or_asked_for(tmp_path: Path, shared: Path) -> None:
    base = llama(tmp_path, shared, "llama3.1")
    run = make_run(tmp_path / "runs", base)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"is not where it was.*--base FOLDER"):
        duties_of(run, tmp_path / "runs")
    assert duties_of(run, tmp_path / "runs", bases=(moved,)).metadata == {"license": "llama3.1"}
    licence = (moved / "LICENSE").read_bytes()
    files = {"model.safetensors": b"w", "config.json": b"{}", "LICENSE": licence}
    merged = make_merged(tmp_path / "merged", run, files_=files)
    assert duties_of(merged, tmp_path / "runs").files()["LICENSE"] == merged / "LICENSE"  # as finetune merge copied it
    other = llama(tmp_path / "other", shared, "llama3")
    with pytest.raises(InputError, match=r"base-llama3 \(--base\) is another base than the manifest's"):
        duties_of(run, tmp_path / "runs", bases=(other,))  # not the base that it was trained on

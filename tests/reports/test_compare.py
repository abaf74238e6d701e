import re

from finished_runs import NASTY, chain, sft_run
from page_reader import read
from release.made_runs import make_base, source

from finetune.plan.evaluations import Evaluation, keep_evaluation
from finetune.reports.compare import comparison_page, run_names
from finetune.reports.differences import MISSING, answers_of_both, nested, short
from finetune.reports.read import read_run


def two(tmp_path, **more):
    """Two runs of one stage: the second with other settings, data and results."""
    base = make_base(tmp_path / "base")
    first = sft_run(tmp_path / "a", base)
    settings = {"kind": "sft", "start_from": None, "epochs": 3.0, "data": [{"path": "x.jsonl", "take": None}]}
    metrics = {"steps": 9, "first_held_out": 3.0, "held_out": 0.25}
    second = sft_run(tmp_path / "b", base, settings=settings, metrics=metrics, **more)
    return read_run(first), read_run(second)


def table_rows(content, id):
    """Cells of the first table of a section."""
    section = content.split(f'id="{id}"', 1)[1].split("</section>", 1)[0]
    body = section.split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", body)]  # fmt: skip


def test_only_what_differs_is_shown_key_by_key(tmp_path):
    first, second = two(tmp_path, data={"sources": [source("demo.jsonl", "sha256:" + "9" * 64)], "rows": 24})
    content = comparison_page([(first, second)], ("A", "B"), {})
    assert table_rows(content, "settings") == [["epochs", "2", "3"], ["data", MISSING, "x.jsonl"]]
    assert ["held-out loss", "3 → 0.5", "3 → 0.25", "+0.25"] in table_rows(content, "results")
    assert ">A minus B</th>" in content and "difference</th>" not in content
    data = {row[0]: row[1:] for row in table_rows(content, "data")}
    assert data["demo.jsonl"][1] == "24 rows of content 999999999999" and "rows" not in data
    words = read(content).words
    assert "2 settings differ; the data differs; the environment is the same." in words
    assert "A from 3 to 0.5" in content and "B from" in content  # the curves lie over each other


def test_a_run_and_itself(tmp_path):
    run, _ = two(tmp_path)
    words = read(comparison_page([(run, run)], ("A", "B"), {})).words
    assert "No setting differs; the data is the same; the environment is the same. They are the same run." in words


def test_kinds_are_compared_by_what_both_can_set(tmp_path):
    folders = chain(tmp_path)
    first, second = read_run(folders["sft"]), read_run(folders["ppo"])
    content = comparison_page([(first, second)], run_names(first, second), {})
    assert [row[0] for row in table_rows(content, "settings")] == ["kind", "start_from"]
    assert "are different kinds of stages" in content and "Settings that only one of the kinds has" in content
    assert NASTY not in content and "chat/sft and chat/ppo" in content


def test_answers_of_both_to_the_same_prompts(tmp_path):
    first, second = two(tmp_path)
    for run, word in ((first, "old"), (second, "new")):
        rows = [{"prompt": f"Ask {n}?", "messages": None, "base": "x", "sft": f"{word} {n}"} for n in range(3)]
        names = {"names": ["base", "sft"]}
        keep_evaluation(run.folder, Evaluation("answers", {"name": word}, {"seed": 0, **names}, names, rows))
        other = [{"prompt": f"Only {word}?", "base": "x", "sft": "y"}]
        keep_evaluation(run.folder, Evaluation("answers", {"name": "other"}, {"seed": 0}, names, other))
    first, second = read_run(first.folder), read_run(second.folder)
    rows = answers_of_both(first, second, ("A", "B"))
    assert rows == [{"prompt": f"Ask {n}?", "A": f"old {n}", "B": f"new {n}"} for n in range(3)]
    row = {"prompt": "Else?", "messages": None, "expected": "This.", "base": "x", "sft": "That."}
    for run, kept in ((first, row), (second, {key: value for key, value in row.items() if key != "expected"})):
        keep_evaluation(run.folder, Evaluation("answers", {"name": "more"}, {"seed": 1}, names, [kept]))
    found = answers_of_both(read_run(first.folder), read_run(second.folder), ("A", "B"))
    assert found[-1] == {"prompt": "Else?", "expected": "This.", "A": "That.", "B": "That."}
    content = comparison_page([(first, second)], ("A", "B"), {})
    assert "3 prompts: 3 answers differ, 0 are the same." in content
    either = '<mark class="ft-either">'  # two runs are no before and after: neither looks the better
    assert f"{either}old</mark> 1" in content and f"{either}new</mark> 1" in content and "<mark>" not in content


def test_evaluations_of_the_same_data_stand_together(tmp_path):
    first, second = two(tmp_path)
    for run, score in ((first, 0.25), (second, 0.75)):
        keep_evaluation(
            run.folder, Evaluation("gsm8k", {"name": "g", "digest": "d"}, {"limit": 9}, {"accuracy": score})
        )
    keep_evaluation(first.folder, Evaluation("loss", {"name": "g", "digest": "d"}, {}, {"loss": 1.0}))
    content = comparison_page([(read_run(first.folder), read_run(second.folder))], ("A", "B"), {})
    assert "gsm8k on g: accuracy</td>" in content and "loss on g" not in content
    assert re.search(r"gsm8k on g: accuracy</td><td[^>]*>0.25</td><td[^>]*>0.75</td>", content)


def test_two_recipes_by_stage(tmp_path):
    one, other = two(tmp_path)
    folders = chain(tmp_path / "chain")
    ppo = read_run(folders["ppo"])
    content = comparison_page([(one, other), (ppo, ppo)], ("a.yaml", "b.yaml"), {"dpo": "a.yaml"})
    assert "2 stages are in both recipes. dpo only in a.yaml." in read(content).words
    assert 'id="stage-sft-settings"' in content and 'id="stage-ppo-settings"' in content and 'id="recipe"' in content


def test_nested_differences_by_hand():
    first = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "rows": [{"path": "p", "take": 1}], "gone": {"x": 1, "y": None}}
    second = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "rows": [{"path": "p", "take": 2}, {"hub": "org/name"}]}
    assert list(nested(first, second)) == [
        ("b.c", "1, 2", "1, 3"),
        ("rows[0].take", 1, 2),
        ("rows[1]", MISSING, "org/name"),
        ("gone", "x 1", MISSING),
    ]
    assert short([{"stage": "best"}, {"path": "x"}]) == "best, x" and short({}) == "{}" and short([]) == "[]"


def test_names_tell_runs_apart(tmp_path):
    first, second = two(tmp_path)
    assert run_names(first, second) == (str(first.folder), str(second.folder))
    ppo = read_run(chain(tmp_path / "chain")["ppo"])
    assert run_names(first, ppo) == ("chat/sft", "chat/ppo")

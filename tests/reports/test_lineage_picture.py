import xml.etree.ElementTree as ET

from finished_runs import chain
from release.made_runs import make_merged

from finetune.reports.lineage_picture import Edge, ancestors, graph, lanes, lineage
from finetune.reports.read import read_run


def manifests(folders, *names):
    return [read_run(folders[name]).manifest for name in names or folders]


def test_nodes_and_what_they_read(tmp_path):
    folders = chain(tmp_path)
    nodes, edges = graph(manifests(folders))
    assert [node.title for node in nodes][1:] == ["sft", "helpful", "best", "ppo"]
    names = {edge: (nodes[edge.source].title, nodes[edge.target].title) for edge in edges}
    base = nodes[0].title
    assert {(*names[edge], edge.roles) for edge in edges} == {
        (base, "sft", ("base",)),
        ("sft", "helpful", ("start_from",)),
        ("sft", "best", ("policy",)),
        ("helpful", "best", ("reward",)),
        ("sft", "ppo", ("start_from",)),
        ("helpful", "ppo", ("reward",)),
    }
    assert nodes[4].about == "PPO, starts from sft, judged by helpful"
    assert nodes[4].result == "Held-out reward 1 → 5.5"


def test_ancestors_are_what_a_run_was_made_from_and_no_more(tmp_path):
    folders = chain(tmp_path)
    (folders["sft"].parent / "broken-1").mkdir()
    (folders["sft"].parent / "broken-1" / "manifest.json").write_text("{")
    run = read_run(folders["ppo"])
    assert [one["stage"] for one in ancestors(run.folder, run.manifest)] == ["sft", "helpful", "ppo"]
    merged = read_run(make_merged(tmp_path / "merged", folders["sft"]))
    found = ancestors(merged.folder, merged.manifest)
    assert [one["kind"] for one in found] == ["sft", "merged"]
    nodes, edges = graph(found)
    assert nodes[-1].about == "merged model, made from sft" and edges[-1].roles == ("becomes",)


def test_what_is_not_beside_the_run_is_said(tmp_path):
    folders = chain(tmp_path)
    nodes, edges = graph(manifests(folders, "ppo"), marked=read_run(folders["ppo"]).fingerprint)
    assert [node.title for node in nodes][1:] == ["sft", "helpful", "ppo"]
    assert [node.known for node in nodes] == [True, False, False, True] and nodes[3].mark
    assert "not found beside these runs" in lineage(manifests(folders, "ppo"))
    assert Edge(1, 3, ("start_from",)) in edges


def test_arrows_over_other_stages_have_lanes_of_their_own():
    edges = [Edge(0, 1, ()), Edge(0, 3, ()), Edge(1, 3, ()), Edge(3, 5, ()), Edge(0, 5, ())]
    found = lanes(edges)
    assert edges[0] not in found  # straight down
    for one in found:
        for other in found:
            apart = one.target <= other.source or other.target <= one.source
            assert one == other or apart or found[one] != found[other]
    assert found[edges[3]] == found[edges[2]] == 0 and found[edges[4]] == 2


def test_the_picture_says_all_in_words_and_stays_in_its_frame(tmp_path):
    folders = chain(tmp_path)
    drawn = lineage(manifests(folders), marked=read_run(folders["best"]).fingerprint)
    root = ET.fromstring(drawn)
    assert "best: rejection sampling, sampled from sft, judged by helpful" in root.get("aria-label")
    assert "← this one" in drawn
    width, height = map(float, root.get("viewBox").split()[2:])
    for element in root.iter():
        if element.get("x"):
            assert 0 <= float(element.get("x")) <= width and 0 <= float(element.get("y")) <= height


def test_a_recipe_of_many_rounds_leaves_room_for_words(tmp_path):
    """Each round reads the rows of all before: many arrows over many stages."""
    runs = []
    for number in range(1, 31):
        best = {"stage": f"best.{number}", "kind": "reject", "fingerprint": f"b{number}", "base": {"name": "x"}}
        inputs = {f"best.{n}": f"b{n}" for n in range(1, number + 1)}
        settings = {"kind": "sft", "data": [{"stage": name} for name in inputs]}
        sft = {"stage": f"sft.{number}", "kind": "sft", "fingerprint": f"s{number}", "inputs": inputs}
        runs += [best, {**sft, "settings": settings}]
    root = ET.fromstring(lineage(runs))
    assert all(float(element.get("x")) < 200 for element in root.iter() if element.get("x"))
    assert "rows of best.1 and" not in root.get("aria-label") and "rows of best.30" in root.get("aria-label")

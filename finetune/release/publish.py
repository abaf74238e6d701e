"""Publish a finished folder: prove it, find out what it owes, compose it, read it for secrets, show it, send it.

Nothing leaves this machine before all of that is done and somebody has said yes. The same command does what is left to
do: all of it, what an interrupted attempt did not send, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.errors import InputError
from finetune.plan.manifest import check_files, read_manifest
from finetune.release import hub
from finetune.release.bundle import Bundle, compose, release_format, write_folder
from finetune.release.duties import Duties, Writer
from finetune.release.lineage import Lineage, Member, key_of, trace
from finetune.release.scan import refuse_findings, scan
from finetune.release.terms import Terms, licence_folder, read_terms

Say = Callable[[str], None]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class PublishSettings:
    """to: user/name. bases: folders of the bases, where they are not where the runs had them. base_id: the base's name
    on the hub, where the run had it from a folder. licence: the base's, where its folder does not say it.

    written_by: licences of models that wrote data which came from outside. collection: publish every run that this one
    was made from, too, each as <to>-<stage>, and put all into a collection of that title. samples: held-out answers on
    the card. allowed: texts that the scan would stop at and that are meant to be public. runs: where runs are kept.
    """

    to: str
    public: bool = False
    bases: tuple[Path, ...] = ()
    base_id: str | None = None
    licence: str | None = None
    written_by: tuple[str, ...] = ()
    collection: str | None = None
    samples: int = 3
    allowed: tuple[str, ...] = ()
    runs: Path = Path("runs")


def publish(
    folder: Path, settings: PublishSettings, *, say: Say, ask: Callable[[str], bool], dry_run: Path | None = None
) -> list[str]:
    """Publish a run, or a merged or exported folder. dry_run: write what would go up there, and ask no network.

    ask: shows a question and says whether the answer was yes. Returns the addresses of the commits made: none where
    nothing was to do or the answer was no. Raises InputError and its kinds; FinetuneError where the hub fails.
    """
    if not _NAME.fullmatch(settings.to):
        raise InputError(f"--to {settings.to}: give user/name, of letters, digits, '-', '_' and '.'")
    bundles = prepare(folder, settings, network=dry_run is None, say=say)
    if dry_run is not None:
        for bundle in bundles:
            place = dry_run if len(bundles) == 1 else dry_run / bundle.name.split("/")[1]
            write_folder(bundle, place)
            _show(bundle, None, say)
            say(f"written to {place}; nothing was uploaded")
        return []
    api, user = hub.open_hub()
    say(f"logged in as {user}")
    planned = []
    for bundle in bundles:
        there = hub.look(api, bundle)
        change = hub.compare(bundle, there)
        _check_visibility(bundle, there, settings.public, say)
        _show(bundle, change, say)
        if there.head is not None and there.earlier is None and change.others:
            say(
                f"{bundle.name} exists and holds something else ({', '.join(change.others[:5])}"
                f"{', …' if len(change.others) > 5 else ''}): this goes on top of it and removes nothing of it"
            )
        planned.append((bundle, there, change))
    to_do = [entry for entry in planned if not entry[2].is_none]
    commits = []
    if to_do:
        seen = "everybody can see" if settings.public else "private"
        names = ", ".join(bundle.name for bundle, _, _ in to_do)
        if not ask(f"Upload to {names} ({seen})?"):
            say("nothing was uploaded")
            return []
        for bundle, there, change in to_do:
            commits.append(hub.upload(api, bundle, there, change, public=settings.public))
            say(f"published: {commits[-1]}")
    else:
        say("all of it is there already: nothing to do")
    if settings.collection is not None:
        owner = settings.to.split("/")[0]
        address = hub.collect(api, settings.collection, owner, bundles, public=settings.public)
        say(f"collection: {address}")
    return commits


def prepare(folder: Path, settings: PublishSettings, *, network: bool, say: Say) -> list[Bundle]:
    """Everything before the hub: what would be published, checked. network: licence files may be fetched."""
    if (manifest := read_manifest(folder)) is None:
        raise InputError(_not_finished(folder))
    told: dict[str, None] = {}  # runs of a chain have the same base
    lineage = trace(folder, manifest, settings.runs)
    chain = [(lineage, settings.to)]
    if settings.collection is not None:
        earlier = [
            (trace(member.folder, member.manifest, settings.runs), f"{settings.to}-{_stage(member)}")
            for member in lineage.members[:-1]
            if member.folder is not None
        ]
        if len({name for _, name in earlier}) < len(earlier):
            earlier = [(line, f"{name}-{line.release.key[:6]}") for line, name in earlier]
        chain = [*earlier, *chain]
    bundles = []
    for line, name in chain:
        release = line.release
        assert release.folder is not None
        check_files(release.folder, release.manifest)
        duties = find_duties(line, settings, network=network, say=lambda text: told.update({text: None}))
        duties.check(holds_weights=release_format(release.manifest) in ("gguf", "transformers"))
        if not release.sampled:  # rows are no model: no licence says how they are called
            duties.check_name(name.split("/")[1])
        for terms in duties.terms:
            if terms.is_multimodal and terms.meta is not None and terms.meta.eu_multimodal:
                told[
                    f"{terms.base} is multimodal: the use policy of {terms.meta.model} does not grant its rights to "
                    "people and companies of the European Union, which the card says"
                ] = None
        bundles.append(compose(line, duties, name, base_id=settings.base_id, samples=settings.samples))
    for text in told:
        say(text)
    refuse_findings(
        [
            finding
            for bundle in bundles
            for finding in scan({f"{bundle.name}/{f}": c for f, c in bundle.files.items()}, allowed=settings.allowed)
        ]
    )
    return bundles


def find_duties(lineage: Lineage, settings: PublishSettings, *, network: bool, say: Say) -> Duties:
    """The licences that a lineage brings with it. Raises InputError where one cannot be found out."""
    terms: dict[str, Terms] = {}
    for member in _made_of(lineage):
        digest = member.manifest["base"]["digest"]
        if digest not in terms:
            terms[digest] = _terms(member, lineage, settings, network, say)
    writers = []
    for member in lineage.made_with_outputs_of():
        base = member.manifest["base"]
        # What the user says of the release's base says nothing of another one.
        own = replace(settings, licence=None, base_id=None)
        known = terms.get(base["digest"]) or _terms(member, lineage, own, network, say)
        writers.append(Writer(member.label, known.base, known.id))
    writers += [Writer("data from outside", f"a model under {id}", id) for id in settings.written_by]
    return Duties(tuple(terms.values()), tuple(writers))


def _terms(member: Member, lineage: Lineage, settings: PublishSettings, network: bool, say: Say) -> Terms:
    manifest = member.manifest
    same = [m for m in lineage.members if m.manifest["base"]["digest"] == manifest["base"]["digest"] and m.folder]
    places = [m.folder for m in (member, *same) if m.folder is not None]
    folder = licence_folder(manifest, places, settings.bases, network=network)
    found = read_terms(folder, manifest, stated=settings.licence, base_id=settings.base_id)
    say(f"{found.base} is under {found.id}, says {found.witness}")
    return found


def _made_of(lineage: Lineage) -> list[Member]:
    """The members whose base is in the release: itself, and what it was merged or exported from."""
    inside, frontier = [], [lineage.release]
    while frontier:
        member = frontier.pop()
        inside.append(member)
        inner = [key_of(source) for source in member.manifest.get("made_from", ())]
        frontier += [m for m in lineage.members if m.key in inner]
    return inside


def _stage(member: Member) -> str:
    return str(member.manifest.get("stage") or member.manifest["kind"])


def _not_finished(folder: Path) -> str:
    if not folder.exists():
        return f"no such folder: {folder}. `finetune show RECIPE` prints where its stages are"
    if folder.is_file():
        return f"{folder} is a file: give the folder of a finished run; `finetune show {folder}` prints them"
    if folder.name.endswith(".part"):
        return f"{folder} is not finished: run its recipe again, it goes on from the last checkpoint"
    return f"{folder} has no manifest.json: not a finished run, nor a merged or exported folder"


def _check_visibility(bundle: Bundle, there: hub.There, public: bool, say: Say) -> None:
    if there.head is None:
        return
    if not there.is_private and not public:
        raise InputError(
            f"{bundle.name} exists and everybody can see it: say --public if that is meant, or make it private on its "
            "settings page first"
        )
    if there.is_private and public:
        say(f"{bundle.name} exists and stays private: its settings page on the hub makes it public")


def _show(bundle: Bundle, change: hub.Change | None, say: Say) -> None:
    """The list of what goes up, with sizes."""
    total = sum(bundle.size(file) for file in bundle.files)
    say(f"{bundle.name} ({bundle.repo_type}): {len(bundle.files)} files, {_size(total)}")
    for file in bundle.files:
        state = ""
        if change is not None:
            state = "there already" if file in change.same else "changed" if file in change.changed else "new"
            state = "was edited on the hub and stays as it is" if file in change.edited else state
        say(f"  {_size(bundle.size(file)):>10}  {file}  {state}".rstrip())
    for file in change.gone if change is not None else ():
        say(f"  {'':>10}  {file}  removed: of an earlier release")
    if bundle.left_out:
        say(f"  stays here: {', '.join(_few(bundle.left_out))}")
    if b'"last_row_ids"' in _manifest_of(bundle):
        say("  manifest.json holds the tokens of one row of your data, with which the proof can be repeated")


def _manifest_of(bundle: Bundle) -> bytes:
    content = bundle.files["manifest.json"]
    assert isinstance(content, bytes)
    return content


def _few(names: Sequence[str]) -> list[str]:
    return [*names[:6], *([f"{len(names) - 6} more"] if len(names) > 6 else [])]


def _size(count: int) -> str:
    if count < 2**10:
        return f"{count} B"
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"

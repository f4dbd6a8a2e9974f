"""A trace as a tree for people: short by default, everything with `--all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from components.vlm.dialogue import one_line
from flows.lineage.draws import Row
from flows.lineage.events import EventTrace
from flows.lineage.trace import EpisodeTrace, Findings, ModelTrace

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

SHOWN = 5
ANSWER = 400  # characters of a model's words


def render_model(trace: ModelTrace, everything: bool = False) -> Tree:
    """Version, commit, stages, draws, episodes, sources, trials, checks."""
    model, draws = trace.model, trace.draws
    tree = _tree(f"{model.tag}  registered {model.time[:19].replace('T', ' ')} by {model.by}")
    tree.add(_text(f"commit {model.commit[:12]} on {model.run or 'no run branch'}"))
    _add_stages(tree, trace.stages, everything)
    node = tree.add(
        _text(
            f"draws: {draws['draws']:,} made, {draws['planned']:,} planned, from "
            f"{draws['events_drawn']:,} of {draws['events']:,} events "
            f"({draws['validation_events']:,} held out for validation)"
        )
    )
    _add_episodes(node, trace, everything)
    _add_sources(tree, trace, everything)
    _add_initial(tree, trace.initial)
    _add_trials(tree, trace.trials)
    _add_findings(tree, trace.findings, everything)
    return tree


def _add_initial(tree: Tree, rows: list[Row]) -> None:
    """Weights that training started from; nothing where it was random numbers."""
    if not rows:
        return
    node = tree.add("initial weights")
    for row in rows:
        of = f"  {row['version']}" if row["version"] else ""
        line = node.add(_text(f"{row['part']}{of}  {row['from']}"))
        for name, digest in sorted(row["files"].items()):
            line.add(_text(f"{name}  sha256 {digest[:12]}"))


def render_episode(trace: EpisodeTrace, everything: bool = False) -> Tree:
    """Each episode with every version that had it, and where it was rejected."""
    tree = _tree(f"{trace.query}  in {len(trace.versions_searched)} registered versions")
    for episode in _first(tree, trace.episodes, everything, "episodes"):
        reached = sum(v["draws"] > 0 or bool(v["through"]) for v in episode["versions"])
        node = tree.add(
            _text(f"episode {episode['episode_id']}  {episode['task']}  {episode['source_uri']}")
        )
        node.add(_text(f"reached {reached} model versions, {_draws(episode)} draws in all"))
        for v in episode["versions"]:
            node.add(_text(_exposure(v)))
        if absent := episode["absent_from"]:
            node.add(_text(f"not in the data of {', '.join(absent)}"))
    for row in _first(tree, trace.quarantined, everything, "rejections"):
        tree.add(_text(_rejected(row)))
    _add_findings(tree, trace.findings, everything)
    return tree


def render_event(trace: EventTrace) -> Tree:
    """Recording, boundaries, captions, clusters, draws, models, checks."""
    event, recording = trace.event, trace.recording
    tree = _tree(f"event {event['event_id']}  {event['kind']}")
    tree.add(_text(f"commit {trace.commit[:12]} on {trace.run or 'no run branch'}"))
    node = tree.add(_text(f"recording {recording.get('source_uri', 'unknown')}"))
    node.add(_text(f"version {recording.get('source_version') or 'unknown'}"))
    of = f"episode {event['episode_id']}  {recording.get('task', '')}"
    node.add(_text(f"{of}  ({recording.get('embodiment', 'unknown robot')})"))
    _add_boundaries(tree, event)
    _add_refinement(tree, trace.refinement)
    _add_captions(tree, trace.captions)
    node = tree.add("made by")
    for stage in trace.stages:
        values = [f"{k}={v}" for section in stage["params"].values() for k, v in _flat(section)]
        line = node.add(_text(f"{stage['name']}  code {stage['code'][:12] or 'none'}"))
        line.add(_text("from " + _digests(stage["deps"], False)))
        line.add(_text("with " + (", ".join(values) or "no values")))
    if c := trace.clusters:
        for kind in ("joint", "action"):
            label = f"{kind} cluster {c[f'{kind}_cluster']}"
            tree.add(_text(f"{label}  {c.get(f'{kind}_name', '')}".rstrip()))
    if p := trace.plan:
        tree.add(_text(f"plan: {p['draws']:,} draws, weight {p['weight']:.3g}, {p['split']}"))
    node = tree.add("models that had it" if trace.models else "models that had it: none registered")
    for m in trace.models:
        numbers = f"{m['draws']:,} draws, {m['planned']:,} planned, {m['split']}"
        node.add(_text(f"{m['tag']}  {numbers}  ({m['run'] or m['commit'][:12]})"))
    _add_findings(tree, trace.findings, everything=True)
    return tree


def _add_boundaries(tree: Tree, event: Row) -> None:
    frames = f"control steps {event['start_frame']} to {event['end_frame']}"
    node = tree.add(_text(f"from {event['start_s']:.3f} s to {event['end_s']:.3f} s, {frames}"))
    votes = dict(event["evidence"])
    person = votes.pop("person", None)
    if person:
        said = f"{person['did']} by {person['author']}, {person['time']}"
        node.add(_text(f"corrected: {person.get('of', 'event')}: {said}"))
    told = ", ".join(f"{signal} {vote}" for signal, vote in votes.items())
    score = f"score {event['score']:.2f}"
    node.add(_text(f"boundary at the start: {score}; {told or 'the start of the recording'}"))


def _add_refinement(tree: Tree, refinement: Row) -> None:
    """What a vision-language model said of the boundary at the start."""
    if not refinement:
        return
    node = tree.add(_text("looked at by a vision-language model"))
    for change in refinement["changes"]:
        told = f"{change['did']} at {change['at_s']:.3f} s: it says {change['says_s']:.3f} s"
        node.add(_text(f"{told}, {change['what']}"))
    if not refinement["changes"]:
        node.add(_text(refinement["problem"] or "it sees no change at the start"))
    by = [f"by {refinement['refiner']}"]
    by += [f"{what} {refinement[f'{what}_digest'][:12]}" for what in ("model", "prompt")]
    by += [f"{name} {value}" for name, value in refinement["decoding"].items()]
    node.add(_text(", ".join(by)))
    for told, name in (("it saw", "description"), ("it answered", "reply")):
        if words := one_line(refinement[name] or ""):
            node.add(_text(f"{told}: {words[:ANSWER]}"))


def _add_captions(tree: Tree, captions: list[Row]) -> None:
    node = tree.add("captions")
    for row in captions:
        line = node.add(_text(f"{row['level']}: {row['text']}"))
        by = [f"by {row['captioner']}"]
        by += [f"{row['author']} at {row['time']}"] if row.get("author") else []
        for what in ("model", "prompt"):
            if digest := row.get(f"{what}_digest"):
                by.append(f"{what} {digest[:12]}")
        by += [f"{name} {value}" for name, value in (row.get("decoding") or {}).items()]
        line.add(_text(", ".join(by)))
        if row.get("machine_text") and row["machine_text"] != row["text"]:
            line.add(_text(f"the machine said: {row['machine_text']}"))
        verdicts = (row.get("checks") or {}).items()
        line.add(_text("checks: " + (", ".join(f"{k} {v}" for k, v in verdicts) or "none")))


def show(what: RenderableType) -> None:
    """Print to the terminal's width; into a pipe or file whole lines, however long."""
    from rich.console import Console

    console = Console()
    console.width = console.width if console.is_terminal else 10_000
    console.print(what)


def _draws(episode: Row) -> str:
    return f"{sum(v['draws'] for v in episode['versions']):,}"


def _exposure(v: Row) -> str:
    numbers = f"{v['draws']:,} draws, {v['planned']:,} planned, {v['share']:.2%} of all draws"
    about = f"{numbers}, {v['events']} events" if v["planned"] else f"{v['events']} events"
    return f"{v['tag']}  {v['status']}  ({about}; {v['run']})"


def _rejected(row: Row) -> str:
    where = f"{row['tag']}: " if "tag" in row else ""
    number = row["episode_index"]  # none: an object of no episode
    place = row["source_uri"] if number is None else f"{row['source_uri']} (episode {number})"
    return f"{where}rejected: {place}: {row['reason']}: {row['detail']}"


def _add_stages(tree: Tree, stages: list[Row], everything: bool) -> None:
    node = tree.add("stages")
    for stage in stages:
        line = node.add(_text(f"{stage['name']}  code {stage['code'][:12] or 'none'}"))
        line.add(_text("from " + _digests(stage["deps"], everything)))
        values = [
            f"{key}={value}"
            for section in stage["params"].values()
            for key, value in _flat(section)
        ]
        line.add(_text("with " + (", ".join(values) or "no values")))
        line.add(_text("made " + _digests(stage["outs"], everything)))


def _flat(section: Row) -> Iterable[tuple[str, object]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def _digests(paths: dict[str, str], everything: bool) -> str:
    digits = 32 if everything else 8
    return ", ".join(f"{path} {md5[:digits]}" for path, md5 in paths.items())


def _add_episodes(node: Tree, trace: ModelTrace, everything: bool) -> None:
    drawn, total = trace.draws["episodes_drawn"], trace.draws["episodes"]
    node = node.add(_text(f"episodes: {drawn:,} of {total:,} drawn, most drawn first"))
    for e in _first(node, trace.episodes, everything, "episodes"):
        name = e["episode_id"] if everything else e["episode_id"][:12]
        told = f"{e['draws']:,} draws ({e['share']:.2%}), {e['events']} events, {e['status']}"
        child = node.add(_text(f"{name}  {e['task']}  {told}  {e['source_uri']}"))
        for v in e["event_list"] if everything else []:
            times = f"{v['start_s']:.3f}-{v['end_s']:.3f} s"
            child.add(_text(f"{v['event_id']}  {times}  {v['draws']} draws  {v['caption']}"))


def _add_sources(tree: Tree, trace: ModelTrace, everything: bool) -> None:
    node = tree.add("sources")
    for s in trace.sources:
        told = f"{s['episodes']:,} episodes, {s['draws']:,} draws, {s['objects']:,} files"
        node.add(_text(f"{s['uri']}  {told}, listing {s['version'][:12]}"))
    if trace.quarantined:
        kept = node.add(_text(f"rejected recordings: {len(trace.quarantined):,}"))
        for row in _first(kept, trace.quarantined, everything, "recordings"):
            kept.add(_text(_rejected(row)))


def _add_trials(tree: Tree, trials: list[Row]) -> None:
    node = tree.add("trials" if trials else "trials: none")
    for t in trials:
        judged = f"{t['successes']} of {t['judged']} succeeded" if t["judged"] else "open loop"
        node.add(_text(f"{t['station']}  {t['policy']}: {judged} ({t['trials']} trials)"))


def _add_findings(tree: Tree, findings: Findings, everything: bool) -> None:
    parts = [f"{findings.hold} hold", f"{len(findings.broken)} broken"]
    parts += [f"{len(findings.unchecked)} not compared"] if findings.unchecked else []
    node = tree.add(_text("checks of the records: " + ", ".join(parts)))
    for row in findings.broken:
        bad = node.add(_text(f"BROKEN {row['where']}", "bold red"))
        bad.add(_text(f"expected {row['expected']}"))
        bad.add(_text(f"got      {row['got']}"))
    for row in _first(node, findings.unchecked, everything, "not compared"):
        node.add(_text(f"not compared: {row['where']}: {row['why']}"))


def _first(node: Tree, rows: list[Row], everything: bool, what: str) -> Iterable[Row]:
    """The first rows, then (after the caller added those) how many more there are."""
    shown = rows if everything else rows[:SHOWN]
    yield from shown
    if more := len(rows) - len(shown):
        node.add(_text(f"… and {more:,} more {what} (--all)", "dim"))


def _tree(title: str) -> Tree:
    from rich.tree import Tree

    return Tree(_text(title, "bold"))


def _text(words: str, style: str = "") -> Text:
    """One line; too long for the terminal, it ends in an ellipsis. Never read as markup."""
    from rich.text import Text

    return Text(words, style=style, no_wrap=True, overflow="ellipsis")

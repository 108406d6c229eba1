"""Twenty recordings: groups of sites, small print, tables of a page, `print(run)` and `inspect`, from the arrays."""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import gradscope
from gradscope.cli.inspect import inspect
from gradscope.reading.facts import RunFacts, gather
from gradscope.report import groups, view
from gradscope.words import number, percent
from tests.recordings import RECORDINGS, H, Net, Raw, Recording, T, raw_of, record

Runs = dict[str, gradscope.Run]


class ManySites(nn.Module):
    """Nine sites: a deep stack in both directions, an identity that reads it, and an LSTM beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.gates = nn.GRU(2, H, num_layers=3, bidirectional=True), nn.LSTM(2, H, num_layers=2)
        self.keep, self.out = nn.RNN(2 * H, H, nonlinearity="relu"), nn.Linear(2 * H, 1)
        with torch.no_grad():
            self.keep.weight_hh_l0.copy_(torch.eye(H))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.keep(self.deep(x)[0])[0][-1], self.gates(x)[0][-1]], -1))


@pytest.fixture(scope="module")
def of_many_sites(tmp_path_factory: pytest.TempPathFactory) -> RunFacts:
    run = record(tmp_path_factory.mktemp("many") / "run", Recording(ManySites, steps=12))
    (found,) = gather([run])
    return found


@pytest.fixture(scope="module")
def facts(recorded: Runs) -> list[RunFacts]:
    return gather(list(recorded.values()))


def entry(raw: Raw) -> int:
    active = np.isfinite(raw.rows)
    return int(np.flatnonzero(2 * active.sum(0) >= active.any(1).sum())[0])


def left(raw: Raw) -> float:
    """What is left at the last lag, over where it enters."""
    return float(10 ** (raw.curve[-1] - raw.curve[entry(raw)]))


def steps_of(raw: Raw) -> str:
    first, last = int(raw.steps.min()), int(raw.steps.max())
    return f"step {first}" if first == last else f"steps {first}–{last}"


def span(values: list[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def test_of_many_sites_groups_hold_the_spans_of_their_own_arrays(of_many_sites: RunFacts) -> None:
    run, answers = of_many_sites.run.run, of_many_sites.answers
    told, counted = groups.grouped(answers), 0
    kinds = Counter((answer.late.verdict, answer.late.cause) for answer in answers)
    assert sorted(int(words.split()[0]) for words, _ in told) == sorted(kinds.values())
    for words, small in told:
        count, of, verdict = re.match(r"(\d+) of (\d+) sites \([^)]*\): (?:no )?(\w+)", words).groups()
        assert int(of) == len(answers) == 9
        verdict = {"verdict": "undetermined"}.get(verdict, verdict)
        group = [answer for answer in answers if answer.late.verdict == verdict]
        assert len(group) == int(count)
        raws = {one.site: raw_of(run, one.site, one.quantity, "late") for one in group}
        reach = {site: left(raw) for site, raw in raws.items()}
        least, most = min(reach, key=reach.get), max(reach, key=reach.get)
        ends = f"{number(reach[least])} ({least}) to {number(reach[most])} ({most})"
        apart = number(reach[least]) != number(reach[most])
        assert f"where it enters {ends if apart else number(reach[most])} is left at the last lag." in words
        first = [left(raw_of(run, one.site, one.quantity, "early")) for one in group]
        assert small.startswith(f"At step 0: {span(first)}.")
        if lives := re.search(r"half-lives of (.*?) steps", words):
            counted += 1
            assert lives[1] == span([-np.log10(2) / raws[one.site].slope(*one.late.lag_range).slope for one in group])
        entering = [one.site for one in group if (run.array(one.site, "direct")[..., 1:] != 0).mean() >= 0.5]
        notes = [int(n or count) for n in re.findall(r"Note(?:, at (\d+) of them)?:", small)]
        assert sum(notes) == len(entering)
    assert counted


def test_small_print_counts_the_steps_and_sequences_that_the_arrays_have(facts: list[RunFacts]) -> None:
    several = 0
    for found in facts:
        box = view.boxes([found])[0]
        for answer, said in zip(found.answers, box[0].said if box else (), strict=bool(box)):
            late, early = (raw_of(found.run.run, answer.site, answer.quantity, part) for part in ("late", "early"))
            sequences = int(np.isfinite(late.rows).any(1).sum())
            assert said.more.startswith(f"Measured on {answer.quantity} at {steps_of(late)}, {sequences} sequences.")
            assert (f"At {steps_of(early)}: " in said.more) == (steps_of(early) != steps_of(late))
            several += steps_of(early) != steps_of(late)
    assert several > 15


def test_the_page_prints_what_other_thresholds_would_have_done(facts: list[RunFacts]) -> None:
    told = 0
    for found, shown in zip(facts, view.clipping(facts), strict=True):
        calls = found.run.run.clips()
        table = shown["parts"][0]["table"]
        if not len(calls) or table is None:
            continue
        norms = calls.drop_duplicates("step")["norm_before"].to_numpy()
        norms = norms[np.isfinite(norms)]
        assert table.caption.startswith(f"From {norms.size} norms")
        for threshold, clipped, middle, span, largest in table.rows:
            told += 1
            # Two digits are printed of a threshold, so that what it would do is asked of the table behind the page.
            bound = min(found.thresholds["threshold"], key=lambda one: number(one) != threshold.text)
            bound = np.inf if threshold.text == "none" else bound
            scale = np.minimum(1.0, bound / (norms + 1e-6))
            assert clipped.text == percent(float((scale < 1).mean()))
            low, half, high = np.quantile(scale, [0.05, 0.5, 0.95])
            assert [middle.text, span.text] == [number(half), f"{number(low)}–{number(high)}"]
            assert largest.text == number(float((norms * scale).max()))
    assert told > 50


def test_a_run_without_a_finite_gradient_is_suggested_no_threshold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(nn.RNN(2, H))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1):
        for _ in range(24):
            optimizer.zero_grad()
            (model(torch.randn(T, 8, 2)).sum() * float("nan")).backward()
            optimizer.step()
    run = gradscope.open_run(tmp_path / "run")
    assert np.isnan(run.parameters()["out.weight"]).all()
    (found,) = gather([run])
    assert found.suggestion is None
    (shown,) = view.clipping([found])
    assert [part["table"] for part in shown["parts"]] == [None]
    assert run.suggest_threshold().n == 0


def test_coverage_counts_the_records_of_every_site(facts: list[RunFacts]) -> None:
    rows = [[cell.text for cell in row] for row in view.coverage(facts).rows]
    for found in facts:
        for site in found.run.sites:
            count = str(len(found.run.run.records(site)))
            assert any(row[:2] == [found.name, site] and row[3] == count for row in rows), site
    assert view.losses(facts) == [{"name": "", "words": "Nothing was lost."}]


def test_a_printed_run_has_a_line_for_every_site_and_every_kind_of_clip(recorded: Runs) -> None:
    for name, run in recorded.items():
        head, *lines = str(run).splitlines()
        count = len(range(0, RECORDINGS[name].steps, RECORDINGS[name].every))
        records, sites = (f"{n} {what}{'s' * (n != 1)}" for n, what in ((count, "record"), (len(run.sites), "site")))
        assert head == f"Run {run.name!r}: {records} at {sites}, sealed"
        answers = {one.site: one for one in run.answers()}
        for site, one in answers.items():
            (line,) = [line for line in lines if re.match(rf"  [A-Z]+  {re.escape(site)} \(", line)]
            assert line.strip() == f"{one.late.verdict.upper()}  {one.sentence}"
        clips = run.clips()
        kinds = set(clips["kind"]) if len(clips) else set()
        for kind in kinds:
            (line,) = [line for line in lines if line.startswith(f"  {kind} clipping at ")]
            assert f"of {int(np.isfinite(clips['norm_before']).sum())} call" in line
        bad = any((run.records(site)["nonfinite"] > 0).any() for site in run.sites)
        assert ("The first recorded gradient that is not finite" in lines[0]) == bad
        html = run._repr_html_()
        assert html.count("<li>") == len(lines)
        assert all(escape(line.strip()) in html for line in lines)


def test_inspect_counts_what_the_run_holds(recorded: Runs) -> None:
    shown = CliRunner().invoke(inspect, [str(run.path) for run in recorded.values()], catch_exceptions=False).output
    for (name, run), said in zip(recorded.items(), shown.split("\n\n"), strict=True):
        of, sites = RECORDINGS[name], {site: run.records(site)["step"].to_numpy() for site in run.sites}
        steps = np.unique(np.concatenate(list(sites.values())))
        calls = len(run.clips())
        told = re.search(r"records: +(\d+) of steps (\d+) to (\d+); \D*(\d+) steps? and (\d+) clipping calls?", said)
        assert told is not None, said
        assert [int(one) for one in told.groups()] == [len(steps), steps.min(), steps.max(), of.steps, calls]
        parameters = sum(p.numel() for p in of.make().parameters())
        assert f"model:      {type(of.make()).__name__}, {parameters:,} parameters" in said
        for site in run.sites:
            records, sequences, longest, listed = re.search(
                rf"{re.escape(site)}  \w+, (\d+) records? of up to (\d+) sequences?, (\d+) steps?: (.*)", said
            ).groups()
            assert int(records) == len(sites[site])
            assert int(sequences) == run.lengths(site).shape[1] == of.samples
            assert int(longest) == run.lengths(site).max()
            assert listed.split(", ") == list(run.quantities(site))

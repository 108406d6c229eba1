"""The page's frame and style. ``$name`` is filled by :mod:`gradscope.report.page`, always with escaped text."""

from __future__ import annotations

from string import Template

STYLE = """
:root { --ink: #1a1a1a; --soft: #595959; --line: #dcdcdc; --tint: #f5f6f8; --link: #0b4a86; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.2rem 1.2rem 4rem; max-width: 58rem; background: #fff; color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.soft, figcaption, .by { color: var(--soft); }
.by { margin-top: 0; overflow-wrap: anywhere; }
.answers { list-style: none; margin: 0; padding: 0; }
.answers li { margin: .6rem 0; padding: .55rem .9rem .6rem; background: var(--tint); border-left: 4px solid #888; }
.answers p { margin: .15rem 0; overflow-wrap: anywhere; }
.answers .said { font-size: 1.06rem; }
.answers .more { font-size: .9rem; color: var(--soft); }
.vanishing { border-color: #0072B2 !important; } .exploding { border-color: #D55E00 !important; }
.preserved { border-color: #009E73 !important; }
.verdict { font-weight: 600; }
code, .name { font-family: ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace; font-size: .9em; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; border-bottom: 1.5px solid #888; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td.wrap { white-space: normal; min-width: 7.5rem; max-width: 24rem; overflow-wrap: anywhere; }
.n { white-space: nowrap; } td .soft { font-size: .92em; }
figure { margin: 1.6rem 0 2.2rem; break-inside: avoid; }
figure svg { display: block; margin: 0 auto; }
figcaption { font-size: .88rem; max-width: 46rem; margin: .5rem auto 0; }
figcaption b { color: var(--ink); }
details > summary { cursor: pointer; color: var(--link); }
pre { background: var(--tint); padding: .7rem .9rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
ul.plain { padding-left: 1.1rem; margin: .4rem 0; } ul.plain li { margin: .25rem 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.4rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  details > :not(summary) { display: block; } .answers li { break-inside: avoid; } .scroll { overflow: visible; } }
"""

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="gradscope $version">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="by">$byline</p>
</header>
<main>
$body
</main>
</body>
</html>
"""
)

#: What every reader should know before quoting a number.
READING = """
<ul class="plain">
<li>A curve shows the norm of the <b>total</b> derivative of the loss with respect to a state: what arrives from above
at that timestep, and everything that comes back through the recurrence. Lag counts recurrent steps back from the last
processed step of each sequence.</li>
<li>For an LSTM the curve is that of the <b>cell state</b>; its hidden state alone can read zero while the cell state
carries the gradient in full.</li>
<li>A half-life is quoted only where a straight line explains the logarithm of the curve: R² of at least .95, and two
halves of the range whose slopes differ by less than half. Intervals are 95 % bootstrap intervals over the recorded
steps of this run, or over the sequences of a single step: they do not speak of other seeds. Where the sequences of a
single step share the course of their curves, the interval is a wide one from that course, or none is given.</li>
<li>Vanishing and exploding mean that the whole interval lies beyond a factor of ten over the stated lags, preserved
that it lies within. Where a gradient enters at every step, a level curve is not called preserved.</li>
<li>&ldquo;Vanishing&rdquo; describes how the gradient flows. It does not say that the model cannot learn: networks
learn long dependencies despite it.</li>
<li>Clipping by the norm multiplies all gradients of a step by one number. It cannot change the shape of that
step's decay curve, only the course of the training.</li>
</ul>
"""

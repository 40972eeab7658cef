"""The style sheet of our pages: light and dark, desktop and phone."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --raised: #ffffff; --ink: #1b1d22; --muted: #666b76; --rule: #e3e3de;
  --accent: #2459c9; --dense: #b4b8bf; --empty: #e9eaee;
  --attention: #2f66d0; --feed_forward: #c9731b; --decoder_attention: #1f8a70; --cross_attention: #8657c2;
  --decoder_feed_forward: #b8456b; --total: #6d727c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --raised: #1b1e24; --ink: #e8e9ec; --muted: #9aa0ab; --rule: #2d3139;
    --accent: #86abff; --dense: #59606c; --empty: #2a2e36;
    --attention: #6f9bff; --feed_forward: #eda355; --decoder_attention: #4fc1a4; --cross_attention: #b78cf0;
    --decoder_feed_forward: #ee82a6; --total: #a4aab5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 940px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 8px; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 56px 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 15px; margin: 0; color: var(--ink); }
p { margin: 0 0 12px; }
.eyebrow, .note { color: var(--muted); }
.eyebrow { margin: 0; font-size: 13px; }
.note { font-size: 14px; margin: 2px 0 10px; max-width: 70ch; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin: 28px 0 0; }
.tile { background: var(--raised); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; }
.tile p { margin: 0; font-size: 14px; color: var(--muted); }
.tile .big { font-size: 38px; line-height: 1.15; color: var(--ink); font-weight: 650; letter-spacing: -0.02em; }
.tile .name { color: var(--ink); font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px 40px; margin-top: 16px; }
figure { margin: 0; min-width: 0; }
svg { display: block; max-width: 100%; height: auto; }
figure > svg { width: 100%; }
svg text { font-size: 11.5px; fill: var(--muted); font-family: inherit; }
svg text.strong { fill: var(--ink); font-size: 13px; }
svg text.accent { fill: var(--accent); font-weight: 600; }
.rule { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dense { fill: var(--dense); background: var(--dense); }
.compact { fill: var(--accent); background: var(--accent); }
.pruned { fill: var(--dense); background: var(--dense); }
.gone { fill: none; stroke: var(--dense); stroke-width: 0.8; stroke-dasharray: 2 2; }
.zero { fill: var(--empty); background: var(--empty); }
.line.attention { stroke: var(--attention); } .attention { fill: var(--attention); background: var(--attention); }
.line.feed_forward { stroke: var(--feed_forward); }
.feed_forward { fill: var(--feed_forward); background: var(--feed_forward); }
.line.decoder_attention { stroke: var(--decoder_attention); }
.decoder_attention { fill: var(--decoder_attention); background: var(--decoder_attention); }
.line.cross_attention { stroke: var(--cross_attention); }
.cross_attention { fill: var(--cross_attention); background: var(--cross_attention); }
.line.decoder_feed_forward { stroke: var(--decoder_feed_forward); }
.decoder_feed_forward { fill: var(--decoder_feed_forward); background: var(--decoder_feed_forward); }
.line.total { stroke: var(--total); stroke-dasharray: 5 4; } .total { fill: var(--total); background: var(--total); }
.line.edge { stroke: var(--rule); stroke-width: 1.5; }
.line.score { stroke: var(--accent); } .score { fill: var(--accent); background: var(--accent); }
.line.attention, .line.feed_forward, .line.decoder_attention, .line.cross_attention, .line.decoder_feed_forward,
.line.total, .line.score { fill: none; background: none; }
.legend { list-style: none; padding: 0; margin: 0 0 8px; display: flex; flex-wrap: wrap; gap: 4px 18px;
  font-size: 13px; color: var(--muted); }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
.swatch.gone { border: 1px dashed var(--muted); }
.layers { border-top: 1px solid var(--rule); margin-top: 8px; }
.layer { display: grid; grid-template-columns: 128px minmax(0, 1fr) 220px; gap: 6px 28px; align-items: center;
  padding: 14px 0; border-bottom: 1px solid var(--rule); }
.layer.heads { padding: 6px 0; font-size: 12px; color: var(--muted); }
.layer b { display: block; font-size: 14px; } .layer span { font-size: 13px; color: var(--muted); }
.layer .names { display: grid; grid-template-columns: repeat(4, 1fr); column-gap: 1.9%; }
.layer svg { width: 100%; }
.layer svg.strip { width: auto; margin-top: 6px; }
.scrolls { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
th, td { text-align: right; padding: 5px 0 5px 14px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; font-weight: 400; }
thead th { color: var(--muted); font-weight: 500; }
details { margin: 8px 0 0; font-size: 13.5px; }
summary { cursor: pointer; color: var(--muted); }
details[open] > summary { margin-bottom: 6px; }
dl { display: grid; grid-template-columns: 180px minmax(0, 1fr); gap: 0; margin: 8px 0 0; font-size: 14px; }
dt, dd { margin: 0; padding: 6px 0; border-bottom: 1px solid var(--rule); }
dt { color: var(--muted); } dd { overflow-wrap: anywhere; } dd p { margin: 0 0 4px; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 40px; font-size: 13px; color: var(--muted); }
@media (max-width: 720px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 25px; } h2 { margin-top: 44px; }
  .tiles, .columns { grid-template-columns: minmax(0, 1fr); }
  .tiles { gap: 10px; }
  .layer { grid-template-columns: minmax(0, 1fr); }
  .layer.heads > :first-child, .layer.heads > :last-child { display: none; }
  table { font-size: 12.5px; } td { white-space: normal; } th, td { padding-left: 8px; }
  dl { grid-template-columns: minmax(0, 1fr); } dt { border: 0; padding-bottom: 0; } dd { padding-top: 0; }
}
@media print { body { background: #fff; } .tile, figure, .layer { break-inside: avoid; } }
"""

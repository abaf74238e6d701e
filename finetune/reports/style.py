"""The look of reports and of what notebooks show: CSS whose every rule stands under the class `.ft`.

Paper, ink and the four colours of lines exist twice, for light and for dark; each ink has at least 4.5:1 against its
paper and panel, each line at least 3:1. Printing is always light. Nothing is fetched: fonts are the reader's own.
"""

from __future__ import annotations

_LIGHT = (
    "--ft-paper:#fff;--ft-panel:#f5f6f8;--ft-ink:#1d2127;--ft-quiet:#565f6b;--ft-line:#d5dae0;--ft-link:#0a58a8;"
    "--ft-before:#ffe3d6;--ft-after:#d3f0dc;--ft-warn:#7a4b00;--ft-warn-paper:#fff4d9;"
    "--ft-1:#1a6fb5;--ft-2:#c05315;--ft-3:#2c7a4b;--ft-4:#7d4fa8;color-scheme:light"
)
_DARK = (
    "--ft-paper:#11151a;--ft-panel:#1a2028;--ft-ink:#e5e9ee;--ft-quiet:#a2adba;--ft-line:#364049;--ft-link:#79b8ff;"
    "--ft-before:#56301f;--ft-after:#1d4a30;--ft-warn:#f3cf86;--ft-warn-paper:#352a12;"
    "--ft-1:#61aef0;--ft-2:#f0935a;--ft-3:#6cc492;--ft-4:#c09be6;color-scheme:dark"
)

STYLE = f"""\
.ft{{{_LIGHT};background:var(--ft-paper);color:var(--ft-ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere}}
@media (prefers-color-scheme:dark){{.ft{{{_DARK}}}}}
@media print{{.ft{{{_LIGHT}}}}}
.ft *{{box-sizing:border-box}}
.ft a{{color:var(--ft-link)}}
.ft :focus-visible{{outline:2px solid var(--ft-link);outline-offset:2px}}
.ft .ft-quiet{{color:var(--ft-quiet)}}
.ft .ft-scroll{{overflow-x:auto;max-width:100%;margin:.75rem 0;border:1px solid var(--ft-line);border-radius:6px}}
.ft table.ft-table{{border-collapse:collapse;width:100%;margin:0;font-size:.9em;font-variant-numeric:tabular-nums}}
.ft table.ft-table caption{{text-align:left;padding:.5rem .75rem;color:var(--ft-quiet);
  background:var(--ft-panel)}}
.ft table.ft-table th,.ft table.ft-table td{{text-align:left;vertical-align:top;padding:.4rem .75rem;
  border:0;border-top:1px solid var(--ft-line);overflow-wrap:normal;color:inherit;background:none;white-space:normal}}
.ft table.ft-table td{{min-width:4.5rem;max-width:32rem;overflow-wrap:break-word}}
.ft table.ft-table td code{{display:inline-block;min-width:14rem;overflow-wrap:anywhere}}
.ft table.ft-table thead th{{border-top:0;background:var(--ft-panel);font-weight:600;white-space:nowrap}}
.ft table.ft-table .ft-number{{text-align:right;white-space:nowrap;overflow-wrap:normal}}
.ft dl.ft-facts{{display:grid;grid-template-columns:minmax(7rem,max-content) minmax(0,1fr);gap:.25rem 1.25rem;
  margin:.75rem 0}}
.ft dl.ft-facts dt{{color:var(--ft-quiet);font-weight:400;margin:0;width:auto;float:none}}
.ft dl.ft-facts dd{{margin:0;font-variant-numeric:tabular-nums}}
.ft figure.ft-code{{margin:.75rem 0;border:1px solid var(--ft-line);border-radius:6px;overflow:hidden}}
.ft figure.ft-code figcaption{{padding:.4rem .75rem;color:var(--ft-quiet);background:var(--ft-panel);font-size:.9em}}
.ft figure.ft-code pre{{margin:0;padding:.75rem;overflow-x:auto;max-height:30rem;background:none;color:inherit;
  font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:normal}}
.ft article.ft-sample{{margin:.75rem 0;border:1px solid var(--ft-line);border-radius:6px;overflow:hidden;
  break-inside:avoid}}
.ft .ft-turn{{padding:.5rem .75rem;border-top:1px solid var(--ft-line)}}
.ft .ft-turn:first-child{{border-top:0}}
.ft .ft-prompt{{background:var(--ft-panel)}}
.ft .ft-name{{display:block;font-size:.8em;color:var(--ft-quiet)}}
.ft .ft-said{{margin:0;white-space:pre-wrap}}
.ft .ft-sides{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));
  border-top:1px solid var(--ft-line);gap:1px;background:var(--ft-line)}}
.ft .ft-sides .ft-turn{{border-top:0;background:var(--ft-paper)}}
.ft mark{{color:inherit;border-radius:2px;padding:0 1px;text-decoration:underline;text-underline-offset:.2em;
  background:var(--ft-after)}}
.ft mark.ft-before{{background:var(--ft-before);text-decoration-style:dotted}}
.ft mark.ft-either{{background:var(--ft-line)}}
.ft .ft-note{{margin:.75rem 0;padding:.5rem .75rem;border-left:3px solid var(--ft-warn);color:var(--ft-warn);
  background:var(--ft-warn-paper)}}
.ft svg.ft-curve{{display:block;width:100%;max-width:34rem;height:auto;color:var(--ft-ink);
  font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}}
.ft svg.ft-curve text{{fill:currentColor}}
.ft svg.ft-curve .ft-quiet{{fill:var(--ft-quiet)}}
.ft svg.ft-curve .ft-grid{{stroke:var(--ft-line)}}
.ft svg.ft-curve .ft-1{{stroke:var(--ft-1);color:var(--ft-1)}}
.ft svg.ft-curve .ft-2{{stroke:var(--ft-2);color:var(--ft-2)}}
.ft svg.ft-curve .ft-3{{stroke:var(--ft-3);color:var(--ft-3)}}
.ft svg.ft-curve .ft-4{{stroke:var(--ft-4);color:var(--ft-4)}}
@media print{{
.ft .ft-scroll{{overflow:visible}}
.ft table.ft-table th,.ft table.ft-table td{{overflow-wrap:anywhere;white-space:normal;min-width:0}}
.ft figure.ft-code pre{{max-height:none;white-space:pre-wrap}}
}}
"""

"""What a page needs beyond its pieces: columns, headings, contents, large figures. Every rule under `.ft`, as STYLE."""

from __future__ import annotations

PAGE_STYLE = """\
.ft{margin:0}
.ft .page{max-width:78rem;margin:0 auto;padding:1.25rem clamp(1rem,3vw,2.5rem) 5rem}
.ft main,.ft header{min-width:0}
.ft h1{font-size:clamp(1.5rem,5vw,2.1rem);line-height:1.2;margin:.25rem 0 .75rem;letter-spacing:-.01em}
.ft h2{font-size:1.35rem;line-height:1.25;margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--ft-line);
  scroll-margin-top:.5rem}
.ft h3{font-size:1.05rem;line-height:1.3;margin:2rem 0 .5rem;scroll-margin-top:.5rem}
.ft p{margin:.6rem 0;max-width:46rem}
.ft .lead{font-size:1.1rem}
.ft .skip:not(:focus){position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.ft .skip:focus{position:absolute;left:1rem;top:.5rem;background:var(--ft-paper);padding:.25rem .5rem}
.ft ul{margin:.6rem 0;padding-left:1.25rem;max-width:46rem}
.ft nav ol{list-style:none;margin:1.25rem 0 0;padding:.75rem 1rem;max-height:12rem;overflow-y:auto;font-size:.93rem;
  border:1px solid var(--ft-line);border-radius:6px;columns:11rem}
.ft nav li{break-inside:avoid;padding:.1rem 0}
.ft nav li.level-3{display:none}
.ft nav a{text-decoration:none}
.ft nav a:hover,.ft nav a:focus-visible{text-decoration:underline}
.ft .tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr));gap:.75rem;margin:1rem 0}
.ft .tile{display:flex;flex-direction:column;padding:.7rem .9rem;border-radius:6px;background:var(--ft-panel);
  font-size:.9rem}
.ft .tile .value{font-size:1.35rem;font-weight:600;color:var(--ft-ink);font-variant-numeric:tabular-nums}
.ft .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.25rem 1.5rem;
  margin:1rem 0;align-items:start}
.ft .grid>*{break-inside:avoid}
.ft svg.ft-lineage{max-width:38rem}
.ft figure.picture{margin:0}
.ft figure.picture img{display:block;width:100%;max-width:38rem;height:auto;border-radius:6px}
.ft figure.mask{margin:1rem 0;max-width:34rem}
.ft figure.mask figcaption{font-size:.93rem;margin-bottom:.35rem}
.ft figure.mask svg{display:block}
.ft figure.mask .read{fill:var(--ft-line)}
.ft figure.mask .trained{fill:var(--ft-1)}
.ft details{margin:.75rem 0}
.ft summary{cursor:pointer;color:var(--ft-link);padding:.25rem 0}
.ft code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.92em}
@media (min-width:68rem){
.ft .page{display:grid;grid-template:"nav head" auto "nav main" 1fr / 13rem minmax(0,1fr);gap:0 3rem}
.ft header{grid-area:head}
.ft main{grid-area:main}
.ft nav{grid-area:nav;position:sticky;top:1rem;align-self:start}
.ft nav ol{border:0;margin:0;padding:.5rem 0 0;columns:auto;max-height:calc(100vh - 2rem)}
.ft nav li.level-3{display:block;padding-left:1rem}
}
@media print{
.ft .page{display:block;padding:0;max-width:none}
.ft nav,.ft .skip{display:none}
.ft h2,.ft h3{break-after:avoid}
.ft article,.ft figure{break-inside:avoid}
}
"""

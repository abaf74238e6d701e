"""What has to be true of every page that people look at: `problems(page)` names what is not, in the browser's own view.

Nothing wider than the screen, no text under another, no heading over another, no picture without a size or a name,
enough contrast (WCAG 2 AA: 4.5:1, large text 3:1), a name for every control, no id twice.
"""

from __future__ import annotations

from browser import Page

SCRIPT = r"""
(() => {
  const found = [];
  const shown = element => {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    return style.visibility === 'visible' && style.display !== 'none' && box.width > 0 && box.height > 0
      && element.checkVisibility({checkOpacity: true});
  };
  const named = element => {
    const kind = element.getAttribute('class');
    const name = element.id ? '#' + element.id : kind ? '.' + kind : '';
    const text = (element.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 40);
    return element.tagName.toLowerCase() + name + ' "' + text + '"';
  };
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide + 1)
    found.push('the page is ' + document.documentElement.scrollWidth + ' wide on a screen of ' + wide);

  // what leaves the screen, unless a box round it scrolls or cuts it
  for (const element of document.body.querySelectorAll('*')) {
    if (!shown(element) || element.closest('svg svg, svg *')) continue;
    const box = element.getBoundingClientRect();
    if (box.right <= wide + 1 && box.left >= -1) continue;
    let held = false;
    for (let up = element.parentElement; up && up !== document.body; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== 'visible') { held = true; break; }
    if (!held) found.push('outside the screen: ' + named(element));
  }

  const headings = [...document.querySelectorAll('h1, h2, h3, h4, summary')].filter(shown);
  headings.forEach((one, at) => headings.slice(at + 1).forEach(other => {
    const a = one.getBoundingClientRect(), b = other.getBoundingClientRect();
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1
        && !one.contains(other) && !other.contains(one))
      found.push('over each other: ' + named(one) + ' and ' + named(other));
  }));

  for (const picture of document.querySelectorAll('img, svg')) {
    if (picture.closest('svg') !== picture && picture.tagName !== 'IMG') continue;
    if (picture.getAttribute('aria-hidden') === 'true' || !picture.checkVisibility()) continue;
    const box = picture.getBoundingClientRect();
    if (box.width < 1 || box.height < 1) found.push('without a size: ' + named(picture));
    if (picture.tagName === 'IMG' && !(picture.complete && picture.naturalWidth > 0))
      found.push('broken picture: ' + (picture.alt || picture.src.slice(0, 60)));
    const name = picture.getAttribute('alt') || picture.getAttribute('aria-label')
      || picture.querySelector?.('title')?.textContent;
    if (!name) found.push('without a name: ' + named(picture));
  }
  for (const control of document.querySelectorAll('a[href], button, input, select, textarea, [tabindex="0"]')) {
    if (!shown(control) || control.type === 'hidden') continue;
    const label = control.getAttribute('aria-label') || control.labels?.[0]?.textContent || control.title
      || document.getElementById(control.getAttribute('aria-labelledby'))?.textContent || control.textContent;
    if (!label.trim()) found.push('a control without a name: ' + named(control));
  }
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) found.push('id twice: ' + id);
  for (const link of document.querySelectorAll('a[href^="#"]'))
    if (!document.getElementById(decodeURIComponent(link.getAttribute('href').slice(1))))
      found.push('leads nowhere: ' + link.getAttribute('href'));

  // contrast of every text
  const parse = colour => {
    const numbers = colour.match(/[\d.]+/g).map(Number);
    const unit = colour.startsWith('color(') ? 255 : 1;
    return [numbers[0] * unit, numbers[1] * unit, numbers[2] * unit, numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(at => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const behind = element => {
    const layers = [];
    for (let up = element; up; up = up.parentElement) {
      const colour = parse(getComputedStyle(up).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    let paper = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
    for (const layer of layers.reverse()) paper = over(layer, paper);
    return paper;
  };
  const poor = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element || !shown(element)) continue;
    if (['SCRIPT', 'STYLE', 'TITLE', 'DESC'].includes(element.tagName.toUpperCase())) continue;
    const style = getComputedStyle(element), paper = behind(element);
    const ink = over(parse(element.closest('svg') ? style.fill : style.color), paper);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5) - 0.01) poor.set(ratio.toFixed(2) + ' ' + element.className, named(element));
  }
  for (const [ratio, where] of poor) found.push('contrast ' + ratio + ': ' + where);
  return found;
})()
"""


def problems(page: Page) -> list[str]:
    """Everything that is wrong with the page as it is shown now, and what its console and its loads complained of."""
    found: list[str] = list(page.evaluate(SCRIPT))
    return found + page.errors

"""The contrast of every visible text of a page with what lies behind it, as WCAG 2 computes it."""

from typing import Any

LOOK = """() => {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (color) => {
    const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const look = (element, color, below, text) => {
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const value = ratio(over(rgba(color), below), below);
    found.push([value, large ? 3 : 4.5, text.trim().slice(0, 40), element.tagName + "." + element.className]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("svg, option, .unseen, .skip") || !element.checkVisibility()) continue;
    look(element, getComputedStyle(element).color, behind(element), node.data);
  }
  for (const text of document.querySelectorAll("svg text")) {
    if (!text.checkVisibility()) continue;
    const box = text.parentElement.querySelector("rect");
    const below = box ? rgba(getComputedStyle(box).fill).slice(0, 3) : behind(text.closest(".canvas"));
    look(text, getComputedStyle(text).fill, below, text.textContent);
  }
  for (const input of document.querySelectorAll("input, textarea, select")) {
    if (!input.checkVisibility() || ["checkbox", "range"].includes(input.type)) continue;
    look(input, getComputedStyle(input).color, behind(input), input.value || "value");
    look(input, getComputedStyle(input, "::placeholder").color, behind(input), input.placeholder || "placeholder");
  }
  return found;
}"""


def too_faint(page: Any) -> list[tuple[str, float, str]]:
    """(text, ratio, element) of what lacks contrast. Looks at everything that is visible; at least at 40 texts."""
    found = page.evaluate(LOOK)
    assert len(found) > 40
    return [(text, round(ratio, 2), element) for ratio, least, text, element in found if ratio < least]

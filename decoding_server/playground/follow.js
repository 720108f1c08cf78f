// Keeps the end of something that grows in view for a reader who is there. One who has gone elsewhere is left there.

const SLACK = 8; // pixels: a fraction of a line is no departure

/** Whether the end of `element` is on the screen. floor: where the screen ends, or what lies over it begins, in pixels. */
export function endIsSeen(element, floor) {
  const { bottom } = element.getBoundingClientRect();
  return bottom > 0 && bottom <= floor + SLACK;
}

/** Scrolls down as far as the end needs. */
export function followEnd(element, floor) {
  const { bottom } = element.getBoundingClientRect();
  if (bottom > floor) scrollBy(0, bottom - floor);
}

/** Scrolls to the end from wherever the page is; from below it to the middle of the screen. */
export function showEnd(element, floor) {
  followEnd(element, floor);
  const { top, bottom } = element.getBoundingClientRect();
  if (top < 0 && bottom < floor / 2) scrollBy(0, bottom - floor / 2);
}

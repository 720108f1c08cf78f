// Light, dark, or what the system says.

import { el } from "./element.js";

const NAME = "decoding-server.theme";
const ORDER = ["auto", "light", "dark"];

function apply(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** The button that goes through the themes. */
export function themeButton() {
  let theme = sessionStorage.getItem(NAME) ?? "auto";
  const button = el("button", { type: "button", class: "quiet", id: "theme" });
  const show = () => {
    apply(theme);
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    sessionStorage.setItem(NAME, theme);
    show();
  });
  show();
  return button;
}

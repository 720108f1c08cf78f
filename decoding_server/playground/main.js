// The page: what the server offers, one lane or two beside each other, and the line to write in.

import { getJson } from "./api.js";
import { el } from "./element.js";
import { askForKey } from "./key_dialog.js";
import { Lane } from "./lane.js";
import { loadSession, sessionSaver } from "./session.js";
import { themeButton } from "./theme.js";

const find = (id) => document.getElementById(id);

async function withKey(work) {
  for (let message = "This server wants a key."; ; message = "That key was not accepted.") {
    try {
      return await work();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForKey(message);
    }
  }
}

class Page {
  constructor(models, catalogue) {
    this.catalogue = catalogue;
    const hooks = {
      saved: () => this.saved(),
      point: (lane, param) => this.point(lane, param),
      floor: () => Math.min(innerHeight, this.composer.getBoundingClientRect().top),
      refused: (error) => error.status === 401 && withKey(() => getJson("v1/models")),
    };
    this.saved = () => {};
    this.composer = find("composer");
    this.lanes = ["A", "B"].map((name) => new Lane(name, catalogue, hooks));
    this.model = find("model");
    // Names with a preset are left out: a preset is chosen in the settings, and those would win over the name's.
    const plain = models.filter((one) => !(one.id.includes("@") && one.id.split("@").pop() in catalogue.presets));
    this.model.append(...plain.map((one) => el("option", {}, one.id)));
    this.compare = find("compare");
    this.traced = find("traced");
    this.input = find("message");
    this.send = find("send");
    this.stop = find("stop");
    find("lanes").append(...this.lanes.map((lane) => lane.element));
    find("settings").append(...this.lanes.map((lane) => lane.settings.element));
    this.tabs = this.lanes.map((lane) => this.tab(lane));
    find("tabs").append(...this.tabs);
    this.listen();
    this.restore(loadSession());
    this.saved = sessionSaver(() => this.state());
  }

  tab(lane) {
    return el("button", { type: "button", "aria-pressed": "false", on: { click: () => this.open(lane) } }, `Lane ${lane.name}`);
  }

  listen() {
    this.composer.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask();
    });
    this.stop.addEventListener("click", () => {
      for (const lane of this.lanes) lane.stop();
    });
    find("clear").addEventListener("click", () => {
      for (const lane of this.lanes) lane.clear();
      this.saved();
      this.input.focus();
    });
    this.compare.addEventListener("change", () => {
      this.arrange();
      this.open(this.compare.checked ? this.lanes[1] : this.lanes[0]);
      this.saved();
    });
    for (const box of [this.model, this.traced]) box.addEventListener("change", () => this.saved());
  }

  get active() {
    return this.compare.checked ? this.lanes : [this.lanes[0]];
  }

  arrange() {
    const two = this.compare.checked;
    find("lanes").classList.toggle("two", two);
    this.lanes[1].element.hidden = !two;
    find("tabs").hidden = !two;
  }

  /** Shows a lane's settings. */
  open(lane) {
    this.opened = lane;
    this.lanes.forEach((one, index) => {
      one.settings.element.hidden = one !== lane;
      this.tabs[index].setAttribute("aria-pressed", String(one === lane));
    });
  }

  point(lane, param) {
    find("options").open = true;
    this.open(lane);
    if (!lane.settings.point(param)) this.input.focus();
  }

  async ask() {
    const text = this.input.value.trim();
    if (text === "" || this.lanes.some((lane) => lane.running)) return;
    this.input.value = "";
    const asked = { model: this.model.value, traced: this.traced.checked };
    const work = this.active.map((lane) => lane.ask(text, asked));
    this.busy(true);
    for (const lane of [...this.active].reverse()) lane.reveal(); // where both have no room, the first is seen
    await Promise.all(work);
    this.busy(false);
    const unsent = this.active.every((lane) => !lane.alert.hidden);
    if (unsent) this.input.value = text;
  }

  busy(running) {
    // A reader who has gone elsewhere meanwhile, or selected something, is not called back.
    const here = running || document.activeElement === this.stop;
    this.send.hidden = running;
    this.stop.hidden = !running;
    if (here) (running ? this.stop : this.input).focus({ preventScroll: true });
  }

  state() {
    return {
      model: this.model.value,
      compare: this.compare.checked,
      traced: this.traced.checked,
      lanes: this.lanes.map((lane) => lane.save()),
    };
  }

  restore(saved) {
    if (saved) {
      if ([...this.model.options].some((one) => one.value === saved.model)) this.model.value = saved.model;
      this.compare.checked = saved.compare;
      this.traced.checked = saved.traced;
      this.lanes.forEach((lane, index) => lane.restore(saved.lanes[index]));
    }
    this.arrange();
    this.open(this.lanes[0]);
  }
}

async function begin() {
  find("theme-place").append(themeButton());
  // On a narrow page the settings begin folded.
  find("options").open = matchMedia("(min-width: 60rem)").matches;
  try {
    const [models, catalogue] = await withKey(() => Promise.all([getJson("v1/models"), getJson("v1/strategies")]));
    new Page(models.data, catalogue);
    find("loading").remove();
    find("app").hidden = false;
  } catch (error) {
    find("loading").textContent = `The server can't be used now: ${error.message} Reload the page to try again.`;
  }
}

begin();

// How the model answers, and how the page looks: kept in localStorage, changed in the panel.
import { $, ask, h, plural, setIcon } from "./dom.js";
import { key } from "./api.js";

// slide: where the slider ends, short of the number's own bound.
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, standard: 0.2,
    hint: "0 always takes the likeliest word; higher varies more." },
  { name: "top_p", label: "Top p", min: 0.05, max: 1, step: 0.05, standard: 0.7,
    hint: "Draws from the likeliest words that together have this share." },
  { name: "top_k", label: "Top k", min: 0, max: 1000, step: 1, slide: 200, standard: 0,
    hint: "Draws from this many words; 0 from all." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.05, standard: 1,
    hint: "Above 1 repeats less." },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 32768, step: 1, slide: 2048, standard: 512,
    hint: "In tokens; about three quarters as many words." },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, standard: null,
    hint: "The same seed draws the same answer. Empty: another one each time." },
];
const SYSTEM_MOST = 8000;

const stored = (name, fallback) => {
  try {
    return JSON.parse(localStorage.getItem(`image-chat.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
};
const keep = (name, value) => {
  try {
    localStorage.setItem(`image-chat.${name}`, typeof value === "string" ? value : JSON.stringify(value));
  } catch {
    // Storage is refused or full: it holds for this visit.
  }
};

// In bounds and on whole numbers where only those make sense, or null.
function fit(field, value) {
  if (value === "" || value === null || value === undefined || !Number.isFinite(Number(value))) return null;
  const bounded = Math.min(field.max, Math.max(field.min, Number(value)));
  return field.step === 1 ? Math.round(bounded) : bounded;
}

const values = {};
function load(from) {
  for (const field of FIELDS) values[field.name] = fit(field, from[field.name]) ?? field.standard;
  values.system = typeof from.system === "string" ? from.system.slice(0, SYSTEM_MOST) : "";
}
load(Object(stored("settings", {})));

// The part of a request that these settings make.
export function sampling() {
  return Object.fromEntries(FIELDS.map(({ name }) => [name, values[name]]).filter(([, value]) => value !== null));
}
export const system = () => values.system.trim();

function set(name, value) {
  values[name] = value;
  keep("settings", values);
}

function row(field) {
  const id = `set-${field.name}`;
  const number = h("input", { type: "number", id, min: field.min, max: field.max, step: field.step === 1 ? 1 : "any",
    inputMode: "decimal", placeholder: field.standard === null ? "random" : "", "aria-describedby": `${id}-hint` });
  const top = field.slide ?? field.max;
  const slider = field.standard === null ? null : h("input", { type: "range", min: field.min, max: top,
    step: field.step, "aria-label": `${field.label}, slider` });
  const show = () => {
    number.value = values[field.name] ?? "";
    if (!slider) return;
    slider.value = Math.min(top, values[field.name]);
    slider.style.setProperty("--share", (slider.value - field.min) / (top - field.min));
  };
  number.addEventListener("change", () => {
    set(field.name, fit(field, number.value) ?? field.standard);
    show();
  });
  slider?.addEventListener("input", () => {
    set(field.name, fit(field, slider.value));
    show();
  });
  show();
  return h("div.field", {}, h("div.field-head", {}, h("label", { for: id }, field.label), number), slider,
    h("p.hint", { id: `${id}-hint` }, field.hint));
}

const THEMES = [["system", "System"], ["light", "Light"], ["dark", "Dark"]];
export const theme = () => document.documentElement.dataset.theme ?? "system";

export function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  keep("theme", name);
  paintTheme();
}

function paintTheme() {
  const [name, label] = THEMES.find(([n]) => n === theme());
  setIcon($("theme"), name, `Theme: ${label.toLowerCase()}. Change it`);
  for (const choice of document.querySelectorAll("input[name=theme]")) choice.checked = choice.value === name;
}

export function nextTheme() {
  const at = THEMES.findIndex(([name]) => name === theme());
  setTheme(THEMES[(at + 1) % THEMES.length][0]);
}
paintTheme();

// state: what the server said of itself.
export async function openSettings(state) {
  const text = h("textarea", { id: "set-system", rows: 3, maxLength: SYSTEM_MOST, value: values.system,
    placeholder: "The model's own", "aria-describedby": "set-system-hint",
    oninput: (event) => set("system", event.target.value) });
  const fields = h("div", {}, FIELDS.map(row));
  const reset = h("button", { type: "button", icon: "retry", onclick: () => {
    load({});
    keep("settings", values);
    text.value = "";
    fields.replaceChildren(...FIELDS.map(row));
  } }, "Reset all to the standard");
  const forget = h("button", { type: "button", icon: "key", onclick: () => {
    key.forget();
    forget.remove();
  } }, "Forget the API key");
  $("settings-body").replaceChildren(
    h("section", {}, h("label", { for: "set-system" }, "System prompt"), text,
      h("p.hint", { id: "set-system-hint" }, "Said to the model before every conversation.")),
    h("section", {}, fields, reset),
    h("section", {}, h("h3", {}, "Appearance"), h("div.choices", { role: "radiogroup", "aria-label": "Theme" },
      THEMES.map(([name, label]) => h("label", {}, h("input", { type: "radio", name: "theme", value: name,
        checked: theme() === name, onchange: () => setTheme(name) }), h("span", {}, label))))),
    h("section", {}, h("h3", {}, "Server"), h("dl", {},
      h("dt", {}, "Model"), h("dd", {}, state.model ?? "not known yet"),
      state.device ? [h("dt", {}, "Device"), h("dd", {}, state.device)] : [],
      state.session ? [h("dt", {}, "Conversation"), h("dd", {}, `${plural(state.session, "token")} at most`)] : [],
      h("dt", {}, "Address"), h("dd", {}, location.host),
      h("dt", {}, "API"), h("dd", {}, h("a", { href: "/docs" }, "/docs"))),
    key.get() ? forget : null));
  await ask($("settings"));
}

export async function askKey() {
  $("key-input").value = "";
  if (await ask($("key")) !== "ok" || !$("key-input").value) return false;
  key.set($("key-input").value.trim());
  return true;
}

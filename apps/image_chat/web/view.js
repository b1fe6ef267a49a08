// A conversation as scenes: pictures, and beside them all that was asked and said about them.
import { $, h, icon, iconButton, plural, seconds } from "./dom.js";
import { copyButton, plain, render } from "./markdown.js";
import { big, shown, urlOf } from "./pictures.js";

let hooks = {};
const live = new Map(); // message id -> what of it changes while it is written

export const start = (given) => {
  hooks = given; // album: Map, edit(message, text), regenerate(message), below(message), way(name, message), settings()
};

// A user turn with pictures opens a scene; turns without go on in it.
function scenes(messages) {
  const all = [];
  for (const message of messages) {
    if (!all.length || (message.role === "user" && message.pictures.length)) all.push([]);
    all.at(-1).push(message);
  }
  return all;
}

// Rows of a mosaic: as many pictures in each. Pictures of a row share its height.
function rows(pictures) {
  const n = pictures.length;
  const wide = pictures.every((p) => p.width && p.width / p.height >= 1.5);
  if (n === 2) return wide ? [1, 1] : [2];
  if (n === 3) return [1, 2];
  const first = { 4: [2], 5: [2], 7: [2, 2], 8: [2] }[n] ?? [];
  const rest = n - first.reduce((a, b) => a + b, 0);
  return [...first, ...Array.from({ length: Math.ceil(rest / 3) }, (_, i) => Math.min(3, rest - 3 * i))];
}

// Very long and very tall pictures are shown whole in a frame that is less so.
const aspect = ({ width, height }) => (width ? Math.min(8, Math.max(0.2, width / height)) : 1.5);
const size = (picture) => (picture.width ? `${picture.width} × ${picture.height}` : "");

function frame(pictures, i) {
  const picture = pictures[i];
  const label = `Picture ${i + 1}: ${picture.name}`;
  const inside = shown(picture)
    ? h("button.see", { type: "button", "aria-label": `${label}. See it large`, onclick: () => big(pictures, i) },
      h("img", { src: urlOf(picture.id, picture.blob), alt: "", draggable: false }))
    : h("span.see.plainly", { role: "img", "aria-label": label }, icon(picture.link ? "link" : "picture"),
      h("span", {}, picture.link ?? picture.name));
  return h("figure", { "--aspect": aspect(picture) }, inside,
    pictures.length > 1 ? h("span.number", { "aria-hidden": "true" }, String(i + 1)) : null);
}

function plate(pictures) {
  let i = 0;
  const mosaic = rows(pictures).map((n) => h("div.row", {}, Array.from({ length: n }, () => frame(pictures, i++))));
  const caption = pictures.length === 1 ? [h("span", {}, pictures[0].name), h("span", {}, size(pictures[0]))]
    : [h("span", {}, plural(pictures.length, "picture"))];
  const single = pictures.length === 1;
  return h(single ? "div.plate.single" : "div.plate", { "--aspect": single ? aspect(pictures[0]) : null },
    h("div.mosaic", {}, mosaic, h("span.corners", { "aria-hidden": "true" })), h("p.caption", {}, caption));
}

function asked(message) {
  const turn = h("article.asked", {});
  const show = () => turn.replaceChildren(h("h2", {}, message.text),
    h("div.acts", {}, iconButton("edit", "Edit and ask again", edit)));
  const edit = () => {
    const field = h("textarea", { value: message.text, rows: 2, "aria-label": "Edit the question" });
    const done = (send) => {
      const text = field.value.trim();
      if (send && text) return hooks.edit(message, text);
      show();
      turn.querySelector("button").focus();
    };
    const below = hooks.below(message);
    turn.replaceChildren(h("form.edit", { onsubmit: (event) => (event.preventDefault(), done(true)),
      onkeydown: (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          done(false);
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target === field) {
          event.preventDefault();
          done(true);
        }
      } }, field, h("div.buttons", {},
      h("span.hint", {}, below > 1 ? `Drops the ${below} turns below.` : "Asks again in place of the answer below."),
      h("button", { type: "button", onclick: () => done(false) }, "Cancel"),
      h("button.primary", { type: "submit" }, "Ask again"))));
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  };
  show();
  return turn;
}

const STAGES = [["queue_ms", "Preparing"], ["encode_ms", "Looking"], ["prefill_ms", "Reading"], ["decode_ms", "Writing"]];

// What an answer took: one quiet line, and by stage when it is opened.
function facts({ model, usage, timings, images }) {
  const line = [];
  if (images?.length === 1 && images[0].width) line.push(`${images[0].width} × ${images[0].height}`);
  if (images?.length > 1) line.push(plural(images.length, "picture"));
  const sum = (name) => images.reduce((total, image) => total + (image[name] ?? 0), 0);
  if (images?.length && sum("tiles")) line.push(plural(sum("tiles"), "tile"));
  const spent = timings ? STAGES.reduce((total, [name]) => total + (timings[name] ?? 0), 0) : 0;
  const pace = usage && timings?.decode_ms > 0 ? usage.completion_tokens / timings.decode_ms * 1000 : 0;
  const speed = pace ? pace.toFixed(pace < 100 ? 1 : 0) : "";
  if (usage) line.push(plural(usage.completion_tokens ?? 0, "token") + (speed ? `, ${speed}/s` : ""));
  if (spent) line.push(seconds(spent));
  if (!line.length) return null;
  const terms = [];
  const term = (name, value) => terms.push(h("dt", {}, name), h("dd", {}, value));
  (images ?? []).forEach((image, i) => term(images.length > 1 ? `Picture ${i + 1}` : "Picture",
    [image.width && `${image.width} × ${image.height}`,
      image.tiles && [plural(image.tiles, "tile"), image.tile_size && `${image.tile_size} × ${image.tile_size}`].filter(Boolean).join(" of "),
      image.tokens && plural(image.tokens, "token")].filter(Boolean).join(", ")));
  const known = usage?.cached_tokens ? `, ${usage.cached_tokens.toLocaleString("en")} of them read before` : "";
  if (usage) term("Prompt", plural(usage.prompt_tokens ?? 0, "token") + known);
  const rate = speed ? `, ${speed} a second` : "";
  if (usage) term("Answer", plural(usage.completion_tokens ?? 0, "token") + rate);
  if (timings?.first_token_ms) term("First word after", seconds(timings.first_token_ms));
  if (model) term("Model", model);
  const bar = spent ? h("div.bar-of-time", { "aria-hidden": "true" }, STAGES.map(([name]) =>
    h("span", { className: name, "--grow": Math.max(0, timings[name] ?? 0) }))) : null;
  const stages = STAGES.filter(([name]) => spent && timings[name] !== undefined);
  const legend = stages.length ? h("ul.legend", { "aria-label": "Time by stage" }, stages.map(([name, label]) =>
    h("li", { className: name }, `${label} ${seconds(timings[name])}`))) : null;
  const summary = h("summary", {}, line.map((text) => h("span", {}, text)));
  return h("details.facts", {}, summary, bar, legend, h("dl", {}, terms));
}

const WAYS = { retry: ["retry", "Try again"], key: ["key", "Enter the key"], edit: ["edit", "Change the question"] };

function failure(message) {
  const { title, detail, ways } = message.error;
  const buttons = ways.map((way, i) => h(i === 0 ? "button.primary" : "button", { type: "button",
    icon: WAYS[way][0], onclick: () => hooks.way(way, message) }, WAYS[way][1]));
  return h("div.failure", { role: "alert" }, icon("warn"), h("div", {}, h("strong", {}, title),
    detail ? h("p", {}, detail) : null, h("div.buttons", {}, buttons)));
}

function answered(message) {
  const prose = h("div.prose", {});
  const foot = h("div.foot", {});
  const turn = h("article.answer", { "aria-label": "Answer" }, prose, foot);
  live.set(message.id, { turn, prose, foot, said: 0 });
  paint(message);
  return turn;
}

function paint(message) {
  const { turn, prose, foot } = live.get(message.id);
  const writing = message.status === "streaming";
  turn.setAttribute("aria-busy", String(writing));
  turn.classList.toggle("writing", writing);
  if (message.text) prose.replaceChildren(render(message.text));
  else prose.replaceChildren(...(writing ? [h("p.waiting", {}, message.waiting ?? "Looking")] : []));
  // The pictures' corners search until the first word.
  turn.closest(".scene")?.classList.toggle("looking", writing && !message.text);
  if (writing) return foot.replaceChildren();
  const notes = [];
  if (message.status === "error") notes.push(failure(message));
  if (message.status === "stopped") {
    notes.push(h("p.note", {}, message.text ? "Stopped here." : "Stopped before the first word."));
  }
  if (message.finish === "length") notes.push(h("p.note", {}, "Cut at the longest answer that is set. ",
    h("button.link", { type: "button", onclick: hooks.settings }, "Change it")));
  const acts = message.status === "error" ? null : h("div.acts", {},
    message.text ? copyButton("Copy the answer", () => message.text) : null,
    iconButton("retry", hooks.below(message) ? "Answer again, dropping what is below" : "Answer again",
      () => hooks.regenerate(message)));
  foot.replaceChildren(...notes, h("div.foot-line", {}, acts, message.info ? facts(message.info) : null));
}

// All of a conversation anew; before the first question, the pictures that it will be about.
export function show(conversation, waiting) {
  live.clear();
  const messages = conversation?.messages ?? [];
  const parts = scenes(messages).map((turns) => {
    const pictures = (turns[0].pictures ?? []).map((id) => hooks.album.get(id)).filter(Boolean);
    return h(pictures.length ? "section.scene" : "section.scene.bare", {}, pictures.length ? plate(pictures) : null,
      h("div.turns", {}, turns.map((m) => (m.role === "user" ? asked(m) : answered(m)))));
  });
  if (!messages.length && waiting.length) {
    parts.push(h("section.scene", { "aria-label": "Pictures to send" }, plate(waiting)));
  }
  $("empty").hidden = parts.length > 0;
  $("scenes").hidden = parts.length === 0;
  $("scenes").replaceChildren(...parts);
  $("main").classList.toggle("pictured", Boolean($("scenes").querySelector(".plate")));
  for (const message of messages) if (live.has(message.id)) paint(message);
}

// A message that is being written: drawn once a frame at most, said by sentence.
const due = new Set();
export function update(message) {
  if (!live.has(message.id) || due.has(message.id)) return;
  due.add(message.id);
  requestAnimationFrame(() => {
    due.delete(message.id);
    if (!live.has(message.id)) return;
    const follow = atEnd();
    paint(message);
    say(message);
    if (follow) toEnd();
  });
}

// Screen readers get whole sentences, once each, while the text above changes all the time.
function say(message) {
  const state = live.get(message.id);
  const rest = message.text.slice(state.said);
  const last = [...rest.matchAll(/[.!?:][)"']?\s|\n/g)].at(-1);
  const end = message.status !== "streaming" ? rest.length : last ? last.index + last[0].length : 0;
  state.said += end;
  const words = plain(rest.slice(0, end));
  if (!words) return;
  const log = $("said");
  while (log.children.length > 30) log.firstChild.remove();
  log.append(h("p", {}, words));
}

// On the way to the end counts as there, unless the reader turns round: an answer may come before a smooth scroll ends.
const scroll = $("scroll");
const SCROLL_MS = 1000;
let bound = 0;
export const atEnd = () => performance.now() < bound
  || scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
export function toEnd(smooth = false) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (smooth && !calm) bound = performance.now() + SCROLL_MS;
  scroll.scrollTo({ top: scroll.scrollHeight, behavior: smooth && !calm ? "smooth" : "instant" });
}
for (const turn of ["wheel", "touchmove", "pointerdown"]) scroll.addEventListener(turn, () => { bound = 0; }, { passive: true });

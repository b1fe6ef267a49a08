// The list of conversations: search, open, rename, delete, export.
import { $, h, iconButton, openMenu, plural } from "./dom.js";
import { plain } from "./markdown.js";
import { urlOf } from "./pictures.js";

let hooks = {};
const narrow = matchMedia("(max-width: 899px)");

const DAY = 864e5;
function group(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 6 * DAY) return "This week";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

// Where the search is met: null for nowhere, "" for the title, else the words around.
function met(conversation, search) {
  if (!search || conversation.title.toLowerCase().includes(search)) return "";
  for (const message of conversation.messages) {
    const text = plain(message.text);
    const at = text.toLowerCase().indexOf(search);
    if (at >= 0) return `${at > 24 ? "…" : ""}${text.slice(Math.max(0, at - 24), at + 60)}`;
  }
  return null;
}

function rename(item, conversation) {
  const input = h("input.rename", { value: conversation.title, maxLength: 120, "aria-label": "New name" });
  let over = false;
  const done = (keep) => {
    if (over) return;
    over = true;
    const title = input.value.trim();
    if (keep && title && title !== conversation.title) hooks.rename(conversation, title);
    else paint();
  };
  input.onkeydown = (event) => {
    event.stopPropagation();
    if (event.key === "Enter") done(true);
    if (event.key === "Escape") done(false);
  };
  input.onblur = () => done(true);
  item.replaceChildren(input);
  input.focus();
  input.select();
}

function entry(conversation, found) {
  const { open, runs } = hooks.state();
  const turns = conversation.messages.filter((m) => m.role === "user").length;
  const current = conversation.id === open;
  const image = conversation.cover ? h("img", { src: urlOf(`cover-${conversation.id}`, conversation.cover), alt: "" })
    : h("span.blank", {});
  const below = found || (runs.has(conversation.id) ? "Answering" : plural(turns, "question"));
  const item = h("li", { className: current ? "current" : "" },
    h("button.open", { type: "button", "aria-current": current ? "true" : null,
      onclick: () => hooks.open(conversation.id) }, image,
      h("span.words", {}, h("span.title", {}, conversation.title), h("span.below", {}, below))));
  item.append(iconButton("more", `More for ${conversation.title}`, (event) => openMenu(event.currentTarget, [
    { label: "Rename", icon: "edit", run: () => rename(item, conversation) },
    { label: "Export", icon: "download", run: () => hooks.exportOne(conversation) },
    { label: "Delete", icon: "trash", danger: true, run: () => hooks.remove(conversation) },
  ]), { "aria-haspopup": "menu" }));
  return item;
}

export function paint() {
  const search = $("search").value.trim().toLowerCase();
  const groups = new Map();
  let n = 0;
  for (const conversation of hooks.state().list) {
    const found = met(conversation, search);
    if (found === null) continue;
    const name = group(conversation.updated);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(entry(conversation, found));
    n++;
  }
  const nothing = search ? `Nothing found for “${$("search").value.trim()}”.` : "What you ask is listed here.";
  $("list").replaceChildren(...(n ? [...groups].flatMap(([name, items]) => [h("h2", {}, name), h("ul", {}, items)])
    : [h("p.nothing", {}, nothing)]));
  $("export-all").disabled = hooks.state().list.length === 0;
}

// On a narrow window the sidebar lies over the page and everything else waits.
export function setOpen(open) {
  const over = narrow.matches && open;
  document.body.classList.toggle("sidebar-open", open);
  $("sidebar").inert = !open;
  $("main").inert = over;
  $("scrim").hidden = !over;
  $("sidebar-open").setAttribute("aria-expanded", String(open));
}
export const isOver = () => narrow.matches && document.body.classList.contains("sidebar-open");
export const closeOver = () => isOver() && setOpen(false);

// hooks: state() -> {list, open, runs}, open(id), rename, remove, exportOne
export function start(given) {
  hooks = given;
  $("search").addEventListener("input", paint);
  const toggle = (open) => {
    setOpen(open);
    $(open ? "sidebar-close" : "sidebar-open").focus();
  };
  $("sidebar-open").addEventListener("click", () => toggle(true));
  $("sidebar-close").addEventListener("click", () => toggle(false));
  $("scrim").addEventListener("click", () => toggle(false));
  narrow.addEventListener("change", () => setOpen(!narrow.matches));
  setOpen(!narrow.matches);
  $("search-key").textContent = /Mac|iP/.test(navigator.platform) ? "⌘K" : "Ctrl K";
}

export function search() {
  setOpen(true);
  $("search").focus();
  $("search").select();
}

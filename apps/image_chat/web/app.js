// The page's state, and everything that happens to it.
import { $, bytes, h, icon, plural, seconds, toast } from "./dom.js";
import * as api from "./api.js";
import * as composer from "./composer.js";
import * as pictures from "./pictures.js";
import * as settings from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as store from "./store.js";
import * as transfer from "./transfer.js";
import * as view from "./view.js";

const state = {
  server: { state: "connecting" },
  list: [], // all conversations, newest first
  open: null, // the one shown; null for a new one
  runs: new Map(), // conversation id -> {conversation, message, controller}
  album: new Map(), // picture id -> picture, of the open conversation and of those being answered
};

const SAMPLES = [
  { file: "beach.jpg", text: "What is at the beach?" },
  { file: "breakfast.jpg", text: "How many eggs are there?" },
  { file: "park.jpg", text: "Is there a dog?" },
];

// Painting.

function paintServer() {
  const { state: now, model } = state.server;
  const texts = { connecting: "Connecting", loading: "Loading the model", offline: "Not connected",
    locked: "Key wanted", ready: model };
  $("model").dataset.state = now;
  $("model-text").textContent = texts[now];
  $("model").title = now === "ready" ? model : "";
  const notices = {
    loading: ["The model is loading", "You can choose pictures meanwhile; asking works in a moment.", null],
    offline: ["The server does not answer", "Is image-chat still running? This page tries again by itself.", null],
    locked: ["This server wants an API key", "It is the one that image-chat was started with.", unlock],
  };
  const said = notices[now];
  const notice = $("notice");
  notice.hidden = !said;
  notice.className = `notice ${now}`;
  if (said) {
    notice.replaceChildren(now === "loading" ? h("span.spinner", { "aria-hidden": "true" }) : icon("warn"),
      h("div", { role: "status" }, h("strong", {}, said[0]), h("p", {}, said[1])),
      said[2] ? h("button.primary", { type: "button", icon: "key", onclick: said[2] }, "Enter the key") : "");
  }
  composer.paint();
}

function paint() {
  $("title").textContent = state.open?.title ?? "New conversation";
  document.title = state.open ? `${state.open.title} · image-chat` : "image-chat";
  view.show(state.open, composer.pictures());
  composer.paint();
  sidebar.paint();
}

const failed = (error) => toast(error?.name === "QuotaExceededError"
  ? "The browser's storage is full: delete conversations with large pictures."
  : "This conversation could not be saved here.");

async function save(conversation, added = [], dropped = []) {
  if (conversation.gone) return; // deleted in the middle of an answer
  state.list = [conversation, ...state.list.filter((c) => c.id !== conversation.id)];
  state.list.sort((a, b) => b.updated - a.updated);
  // What is said of the wait is not part of the conversation.
  const messages = conversation.messages.map(({ waiting, ...message }) => message);
  await store.save({ ...conversation, messages }, added, dropped).catch(failed);
}

// The server.

async function connect() {
  for (;;) {
    state.server = { ...state.server, ...await api.look() };
    if (state.server.limits) pictures.setLimits(state.server.limits);
    paintServer();
    if (state.server.state === "ready" || state.server.state === "locked") return;
    await new Promise((resolve) => setTimeout(resolve, state.server.state === "loading" ? 1000 : 3000));
  }
}

async function unlock() {
  const given = await settings.askKey();
  if (given) await connect();
  return given && state.server.state === "ready";
}

// Asking.

async function content(message) {
  const shown = message.pictures.map((id) => state.album.get(id)).filter(Boolean);
  const parts = await Promise.all(shown.map(async ({ link, type, blob }) => ({ type: "image_url",
    image_url: { url: link ?? `data:${type};base64,${await transfer.toBase64(blob)}` } })));
  return [...parts, { type: "text", text: message.text }];
}

// Turns must alternate: a question whose answer failed goes together with the next one.
async function messages(conversation) {
  const all = settings.system() ? [{ role: "system", content: settings.system() }] : [];
  for (const message of conversation.messages) {
    if (message.role === "assistant") {
      if (message.text) all.push({ role: "assistant", content: message.text });
      continue;
    }
    const parts = await content(message);
    if (all.at(-1)?.role === "user") all.at(-1).content.push(...parts);
    else all.push({ role: "user", content: parts });
  }
  return all;
}

async function answer(conversation) {
  const body = { model: state.server.model, messages: await messages(conversation), ...settings.sampling() };
  const message = { id: store.newId(), role: "assistant", text: "", status: "streaming",
    finish: null, info: null, error: null };
  const run = { conversation, message, controller: new AbortController() };
  conversation.messages.push(message);
  conversation.updated = Date.now();
  state.runs.set(conversation.id, run);
  const pictured = conversation.messages.some((m) => m.pictures?.length);
  message.waiting = pictured ? "Looking" : "Thinking";
  await save(conversation);
  if (state.open === conversation) paint();
  view.toEnd(true);
  const began = Date.now();
  let saved = began;
  try {
    for await (const event of api.chat(body, run.controller.signal)) {
      if (event.text) message.text += event.text;
      if (event.finish) message.finish = event.finish;
      if (event.info) message.info = { model: state.server.model, ...message.info, ...event.info };
      if (event.ping) message.waiting = `Still at it after ${seconds(Date.now() - began)}`;
      view.update(message);
      if (Date.now() - saved > 2000) {
        saved = Date.now();
        save(conversation);
      }
    }
    message.status = "done";
  } catch (error) {
    message.status = error.name === "AbortError" ? "stopped" : "error";
    if (message.status === "error") message.error = api.words(error);
    if (error.status === 0 || error.status === 503) connect();
  }
  state.runs.delete(conversation.id);
  entitle(conversation, message);
  await save(conversation);
  view.update(message);
  if (state.open === conversation) {
    $("title").textContent = conversation.title;
    document.title = `${conversation.title} · image-chat`;
  }
  composer.paint();
  sidebar.paint();
}

// "Describe this picture." says little in a list: the answer's first sentence names the conversation better.
function entitle(conversation, message) {
  if (conversation.titled || message.status !== "done") return;
  conversation.titled = true;
  const first = conversation.messages[0].text;
  if (/^describe\b/i.test(first) && first.length < 30) conversation.title = shorten(message.text) || conversation.title;
}

function shorten(text) {
  const sentence = text.replace(/[*_`#>]/g, "").trim().split(/(?<=[.!?])\s|\n/)[0].replace(/\.$/, "")
    .replace(/^(the|this) (picture|image|photo) (shows|depicts|is of|features) /i, "");
  const cut = sentence.length > 64 ? `${sentence.slice(0, 63).replace(/\s+\S*$/, "")}…` : sentence;
  return cut.charAt(0).toUpperCase() + cut.slice(1);
}

async function send(text) {
  const { pictures: held } = composer.draft();
  let conversation = state.open;
  if (conversation && state.runs.has(conversation.id)) return;
  if (!conversation) {
    const now = Date.now();
    conversation = { id: store.newId(), title: shorten(text) || "Conversation", titled: false,
      created: now, updated: now, cover: null, messages: [] };
    state.open = conversation;
  }
  conversation.cover ??= await pictures.cover(held.find(pictures.shown));
  const added = held.map((picture) => ({ ...picture, conversation: conversation.id }));
  for (const picture of added) state.album.set(picture.id, picture);
  conversation.messages.push({ id: store.newId(), role: "user", text, pictures: added.map((p) => p.id) });
  composer.setDraft({ text: "", pictures: [] });
  remember();
  await save(conversation, added);
  await answer(conversation);
}

// Cuts a conversation before a message; pictures that only the cut part had are let go, but for those of the message
// itself where it will be asked again.
async function cut(conversation, message, again = true) {
  const at = conversation.messages.indexOf(message);
  const gone = conversation.messages.splice(at);
  const kept = new Set(conversation.messages.flatMap((m) => m.pictures ?? []));
  for (const id of again ? message.pictures ?? [] : []) kept.add(id);
  const dropped = gone.flatMap((m) => m.pictures ?? []).filter((id) => !kept.has(id));
  await save(conversation, [], dropped);
}

async function edit(message, text) {
  const conversation = state.open;
  if (state.runs.has(conversation.id)) return toast("Stop the answer first.");
  await cut(conversation, message);
  conversation.messages.push({ ...message, id: store.newId(), text });
  if (conversation.messages.length === 1 && !conversation.renamed) {
    conversation.title = shorten(text);
    conversation.titled = false;
  }
  await answer(conversation);
  $("question").focus();
}

async function regenerate(message) {
  const conversation = state.open;
  if (state.runs.has(conversation.id)) return toast("Stop the answer first.");
  await cut(conversation, message);
  await answer(conversation);
}

async function way(name, message) {
  if (name === "retry") return regenerate(message);
  if (name === "key") return await unlock() ? regenerate(message) : undefined;
  // The question goes back to where it can be changed, with copies of its pictures. The page is as it will be before
  // anything is waited for: the next question may be there at once.
  const conversation = state.open;
  const at = conversation.messages.indexOf(message) - 1;
  const before = conversation.messages[at];
  const held = before.pictures.map((id) => state.album.get(id)).filter(Boolean);
  composer.setDraft({ text: before.text, pictures: held.map((picture) => ({ ...picture, id: store.newId() })) });
  const kept = at > 0 ? cut(conversation, before, false) : takeAway(conversation);
  paint();
  $("question").focus();
  await kept;
}

async function takeAway(conversation) {
  conversation.gone = true;
  state.list = state.list.filter((c) => c.id !== conversation.id);
  state.open = null;
  letGo();
  remember();
  await store.remove(conversation.id).catch(failed);
}

const stop = () => state.runs.get(state.open?.id)?.controller.abort();

// Conversations.

// A reload comes back to the conversation that was open.
function remember() {
  history.replaceState(null, "", state.open ? `#${state.open.id}` : location.pathname + location.search);
}

let opened = 0;
async function open(id) {
  const turn = ++opened;
  const running = state.runs.get(id)?.conversation;
  const conversation = running ?? await store.get(id).catch(() => null);
  const shown = await store.pictures(id).catch(() => []);
  if (turn !== opened) return; // another one was clicked since
  if (!conversation) return start();
  for (const message of conversation.messages) {
    // Left in the middle by a reload or a closed tab.
    if (message.status === "streaming" && !running) message.status = "stopped";
  }
  for (const picture of shown) state.album.set(picture.id, picture);
  state.open = conversation;
  letGo();
  remember();
  sidebar.closeOver();
  paint();
  view.toEnd();
}

// Pictures that nothing shows any more leave the memory.
function letGo() {
  const used = [state.open, ...[...state.runs.values()].map((run) => run.conversation)].filter(Boolean)
    .flatMap((c) => c.messages.flatMap((m) => m.pictures ?? []));
  const kept = new Set([...used, ...composer.pictures().map((p) => p.id)]);
  for (const id of state.album.keys()) if (!kept.has(id)) state.album.delete(id);
  for (const { id } of state.list) kept.add(`cover-${id}`);
  pictures.release(kept);
}

function start() {
  opened++;
  state.open = null;
  letGo();
  remember();
  sidebar.closeOver();
  paint();
  $("scroll").scrollTop = 0;
  $("question").focus();
}

async function rename(listed, title) {
  const conversation = state.open?.id === listed.id ? state.open : state.runs.get(listed.id)?.conversation ?? listed;
  Object.assign(conversation, { title, titled: true, renamed: true });
  await save(conversation);
  if (state.open === conversation) $("title").textContent = title;
  sidebar.paint();
}

async function remove({ id, title }) {
  const run = state.runs.get(id);
  if (run) {
    run.conversation.gone = true;
    run.controller.abort();
  }
  const removed = await store.remove(id).catch(failed);
  if (!removed) return;
  state.list = state.list.filter((c) => c.id !== id);
  if (state.open?.id === id) start();
  else sidebar.paint();
  $("list").focus();
  toast(`Deleted “${title.length > 40 ? `${title.slice(0, 40)}…` : title}”.`, { label: "Undo", run: async () => {
    await save(removed.conversation, removed.pictures);
    sidebar.paint();
  } });
}

async function exportAll(conversations, name) {
  const sets = [];
  for (const { id } of conversations) {
    sets.push({ conversation: await store.get(id), pictures: await store.pictures(id) });
  }
  const file = await transfer.write(sets);
  const url = URL.createObjectURL(file);
  h("a", { href: url, download: `${name}-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  toast(`Exported ${plural(sets.length, "conversation")}, ${bytes(file.size)}.`);
}

async function importFile(file) {
  let sets;
  try {
    sets = await transfer.read(file);
  } catch (error) {
    return toast(`Nothing was imported. ${error.message}.`);
  }
  const known = new Set(state.list.map((c) => c.id));
  const fresh = sets.filter(({ conversation }) => !known.has(conversation.id) && known.add(conversation.id));
  for (const { conversation, pictures: shown } of fresh) {
    conversation.cover = await pictures.cover(shown.find(pictures.shown));
    await save(conversation, shown);
  }
  sidebar.paint();
  const here = sets.length - fresh.length;
  const already = here ? `; ${here} ${here === 1 ? "was" : "were"} here already` : "";
  toast(`Imported ${plural(fresh.length, "conversation")}${already}.`);
}

// Starting.

async function sample({ file, text }) {
  if (state.server.state !== "ready") return toast("The server is not ready yet.");
  const response = await fetch(`samples/${file}`).catch(() => null);
  if (!response?.ok) return toast("The sample could not be loaded.");
  const blob = await response.blob();
  await composer.add([new File([blob], file, { type: blob.type })]);
  await send(text);
}

function keys(event) {
  const command = (event.ctrlKey || event.metaKey) && !event.altKey;
  if (command && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    sidebar.search();
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    start();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open], :popover-open")) {
    if (sidebar.isOver()) $("sidebar-close").click();
    else stop();
  }
}

async function begin() {
  for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
  $("host").textContent = location.host;
  $("samples").replaceChildren(...SAMPLES.map((s) => h("li", {},
    h("button", { type: "button", onclick: () => sample(s) },
      h("img", { src: `samples/${s.file}`, alt: "", width: 280, height: 210,
        onerror: ({ target }) => target.closest("li").remove() }), h("span", {}, s.text)))));
  view.start({ album: state.album, edit, regenerate, way, settings: () => settings.openSettings(state.server),
    below: (message) => state.open.messages.length - state.open.messages.indexOf(message) - 1 });
  composer.start({ send, stop, changed: () => !state.open && view.show(null, composer.pictures()), state: () => ({
    running: state.runs.has(state.open?.id), ready: state.server.state === "ready",
    placeholder: state.open ? "Ask on, or add a picture" : "Ask about a picture" }) });
  sidebar.start({ open, rename, remove, state: () => ({ list: state.list, open: state.open?.id, runs: state.runs }),
    exportOne: (conversation) => exportAll([conversation], "conversation") });
  for (const id of ["new", "new-bar"]) $(id).addEventListener("click", start);
  $("theme").addEventListener("click", settings.nextTheme);
  $("settings-open").addEventListener("click", () => settings.openSettings(state.server));
  $("export-all").addEventListener("click", () => exportAll(state.list, "conversations"));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await importFile(target.files[0]);
    target.value = "";
  });
  $("latest").addEventListener("click", () => view.toEnd(true));
  $("scroll").addEventListener("scroll", () => { $("latest").hidden = view.atEnd() || !state.open; });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", ({ target }) => {
      if (target === dialog || "close" in target.dataset) dialog.close(); // outside of it, or Cancel
    });
  }
  addEventListener("keydown", keys);
  // The dock lies over the end of the conversation, which must be able to scroll out from under it.
  new ResizeObserver(([entry]) => {
    const follow = view.atEnd();
    $("main").style.setProperty("--dock", `${entry.target.offsetHeight}px`);
    $("main").style.setProperty("--gutter", `${$("scroll").offsetWidth - $("scroll").clientWidth}px`);
    if (follow && state.open) view.toEnd();
  }).observe(document.querySelector(".dock"));
  if (!await store.open()) toast("This browser keeps nothing here: conversations end with this tab.");
  state.list = await store.list().catch(() => []);
  if (/^#[0-9a-f]{8,64}$/.test(location.hash)) await open(location.hash.slice(1));
  else paint();
  if (matchMedia("(pointer: fine)").matches) $("question").focus();
  connect(); // not before: a question can be sent from then on, and must find the storage open
}

begin();

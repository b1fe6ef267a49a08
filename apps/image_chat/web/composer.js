// The question and its pictures before they are sent.
import { $, h, iconButton, plural, setIcon, toast } from "./dom.js";
import { askCamera, askLink, big, byLink, limits, shown, takeAll, urlOf } from "./pictures.js";

const PROMPTS = ["Describe this picture.", "What stands out?", "How many things are there?",
  "What is in the background?"];
const MANY = ["Describe these pictures.", "What do they have in common?", "How do they differ?"];

let tray = [];
let hooks = {};
const field = $("question");

export const pictures = () => tray;
export const draft = () => ({ text: field.value, pictures: tray });
export function setDraft({ text, pictures: held }) {
  field.value = text;
  hold(held);
}

function hold(now) {
  tray = now;
  paint();
  hooks.changed();
}

function grow() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

export async function add(files) {
  const { pictures: taken, refused } = await takeAll(files, limits.pictures - tray.length);
  hold([...tray, ...taken]);
  for (const sentence of refused) toast(sentence);
  if (taken.length) field.focus();
}

export function addLink(text) {
  const picture = byLink(text);
  if (!picture) return toast("That is not a picture's address.");
  if (!limits.links) return toast("This server fetches no pictures: save it, then drop the file.");
  if (tray.length >= limits.pictures) return toast(`A question takes ${plural(limits.pictures, "picture")} at most.`);
  hold([...tray, picture]);
  field.focus();
}

export async function from(source) {
  if (source === "files") $("files").click();
  if (source === "link") {
    const picture = await askLink();
    if (picture) addLink(picture.link);
  }
  if (source === "camera") {
    const photo = await askCamera(() => $("capture").click());
    if (photo) await add([photo]);
  }
}

function move(from_, to) {
  if (to < 0 || to >= tray.length || from_ === to) return;
  const moved = [...tray];
  moved.splice(to, 0, ...moved.splice(from_, 1));
  hold(moved);
}

function thumb(picture, i) {
  const last = tray.length - 1;
  const view = shown(picture)
    ? h("button.see", { type: "button", "aria-label": `Picture ${i + 1}: ${picture.name}. See it large`,
      onclick: () => big(tray, i) }, h("img", { src: urlOf(picture.id, picture.blob), alt: "", draggable: false }))
    : h("span.see.plainly", {}, h("span", {}, picture.name));
  const after = (at, action) => {
    const again = $("tray").children[at]?.querySelector(`[data-action=${action}]`);
    (again && !again.disabled ? again : field).focus();
  };
  return h("li", { draggable: true,
    ondragstart: (event) => event.dataTransfer.setData("application/x-image-chat", String(i)),
    ondragover: (event) => event.dataTransfer.types.includes("application/x-image-chat") && event.preventDefault(),
    ondrop: (event) => {
      const at = event.dataTransfer.getData("application/x-image-chat");
      if (at === "") return;
      event.preventDefault();
      event.stopPropagation();
      move(Number(at), i);
    } },
  view, iconButton("close", `Remove picture ${i + 1}`, () => {
    hold(tray.filter((p) => p !== picture));
    after(Math.min(i, tray.length - 1), "remove");
  }, { "data-action": "remove" }),
  tray.length > 1 ? h("span.order", {},
    iconButton("left", `Move picture ${i + 1} forward`, () => (move(i, i - 1), after(i - 1, "left")),
      { "data-action": "left", disabled: i === 0 }),
    iconButton("right", `Move picture ${i + 1} back`, () => (move(i, i + 1), after(i + 1, "right")),
      { "data-action": "right", disabled: i === last })) : null);
}

export function paint() {
  const { running, ready } = hooks.state();
  const box = $("tray");
  box.hidden = tray.length === 0;
  box.replaceChildren(...tray.map(thumb));
  const prompts = $("prompts");
  prompts.hidden = tray.length === 0 || field.value.trim() !== "" || running || !ready;
  prompts.replaceChildren(...(tray.length > 1 ? MANY : PROMPTS).map((text) =>
    h("button", { type: "button", onclick: () => hooks.send(text) }, text)));
  const asks = [hooks.state().placeholder, "Ask about this picture", "Ask about these pictures"];
  field.placeholder = asks[Math.min(2, tray.length)];
  const send = $("send");
  if (running) setIcon(send, "stop", "Stop (Esc)");
  else setIcon(send, "send", "Send");
  send.classList.toggle("running", running);
  send.disabled = !running && (!ready || (tray.length === 0 && field.value.trim() === ""));
  grow();
}

function submit() {
  const { running, ready } = hooks.state();
  if (running) return hooks.stop();
  const text = field.value.trim() || (tray.length > 1 ? MANY[0] : tray.length ? PROMPTS[0] : "");
  if (text && ready) hooks.send(text);
}

function pasted(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (document.querySelector("dialog[open]") || !files.length || text.trim()) return;
  event.preventDefault();
  add(files);
}

// Files from a folder, or a picture of another page, of which the browser gives the address.
function drops() {
  let depth = 0;
  const takes = (event) => !document.querySelector("dialog[open]")
    && ["Files", "text/uri-list"].some((type) => event.dataTransfer?.types.includes(type))
    && !event.dataTransfer.types.includes("application/x-image-chat");
  const over = (on) => {
    depth = on ? depth : 0;
    $("drop").hidden = !on;
  };
  addEventListener("dragenter", (event) => {
    if (!takes(event)) return;
    event.preventDefault();
    depth++;
    over(true);
  });
  addEventListener("dragleave", () => {
    if (depth > 0 && --depth === 0) over(false);
  });
  addEventListener("dragover", (event) => takes(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!takes(event)) return;
    event.preventDefault();
    over(false);
    const { files } = event.dataTransfer;
    if (files.length) add(files);
    else addLink(event.dataTransfer.getData("text/uri-list").split("\n")[0]);
  });
}

// hooks: state() -> {running, ready, placeholder}, send(text), stop(), changed() after another picture
export function start(given) {
  hooks = given;
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  field.addEventListener("input", paint);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!hooks.state().running) submit();
  });
  for (const input of [$("files"), $("capture")]) {
    input.addEventListener("change", () => {
      add([...input.files]);
      input.value = "";
    });
  }
  for (const button of document.querySelectorAll("[data-source]")) {
    button.addEventListener("click", () => from(button.dataset.source));
  }
  document.addEventListener("paste", pasted);
  drops();
  paint();
}

// Elements and icons. Text only ever becomes text nodes here; markdown.js alone makes elements of text.

export const $ = (id) => document.getElementById(id);

// h("button.icon", {type: "button", onclick: f, "aria-label": "Close"}, child, "text", ...)
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "icon") node.prepend(icon(value));
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name in node && !name.includes("-") && name !== "list") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function iconButton(name, label, onclick, more = {}) {
  return h("button.icon", { type: "button", icon: name, "aria-label": label, title: label, onclick, ...more });
}

// Strokes on a 24 x 24 grid; a leading "." fills instead.
const PATHS = {
  camera: "M4 8h3l2-3h6l2 3h3a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  dark: "M19.5 14.2A8 8 0 0 1 9.8 4.5a8 8 0 1 0 9.7 9.7z",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  edit: "M4 20l1-4.5L16 4.5l3.5 3.5-11 11zM13.5 7l3.5 3.5",
  key: "M15 4a5 5 0 1 0 0 10 5 5 0 0 0 0-10zM11.2 12.3L4 19.5M6.5 17l2 2M15.5 8.5v.01",
  left: "M14.5 5.5L8 12l6.5 6.5",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  link: "M10 14a4 4 0 0 0 5.7 0l3.6-3.6a4 4 0 0 0-5.7-5.7L12.5 5.8M14 10a4 4 0 0 0-5.7 0l-3.6 3.6a4 4 0 0 0 5.7 5.7l1.1-1.1",
  more: ".M5 10.4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2zM12 10.4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2zM19 10.4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2z",
  picture: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 3-3L20 17M15.5 8.6v.01",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19.5 3.5V8H15",
  right: "M9.5 5.5L16 12l-6.5 6.5",
  send: "M12 19V5M5.5 11.5L12 5l6.5 6.5",
  sidebar: "M4 5h16v14H4zM9.5 5v14",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  stop: ".M7 5h10a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H7a2 2 0 0 1-2-2V7a2 2 0 0 1 2-2z",
  system: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16zM12 4v16M15 6v12M18 9v6",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  upload: "M12 16V5M7 9.5l5-5 5 5M5 20h14",
  warn: "M12 4L2.8 20h18.4zM12 10v4.5M12 17.2v.01",
};

export function icon(name) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const path = document.createElementNS(ns, "path");
  const filled = PATHS[name].startsWith(".");
  path.setAttribute("d", filled ? PATHS[name].slice(1) : PATHS[name]);
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("glyph");
  if (filled) svg.classList.add("filled");
  svg.append(path);
  return svg;
}

export function setIcon(button, name, label) {
  button.replaceChildren(icon(name));
  button.setAttribute("aria-label", label);
  button.title = label;
}

// A short message below; with an action it stays longer.
export function toast(text, action = null) {
  const node = h("div.toast", {}, h("span", {}, text));
  const away = () => node.remove();
  if (action) node.append(h("button", { type: "button", onclick: () => (away(), action.run()) }, action.label));
  node.append(iconButton("close", "Dismiss", away));
  const box = $("toasts");
  while (box.children.length > 2) box.firstChild.remove();
  box.append(node);
  setTimeout(away, action ? 9000 : 6000);
}

// Opens a <dialog>; resolves with its return value ("" when it was dismissed).
export function ask(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

// A menu below a button: items are {label, icon, run}. The browser closes it on Esc and outside clicks.
export function openMenu(anchor, items) {
  const menu = $("menu");
  menu.replaceChildren(...items.map((item) => h("button", {
    type: "button", role: "menuitem", icon: item.icon, className: item.danger ? "danger" : "",
    onclick: () => (menu.hidePopover(), item.run()),
  }, item.label)));
  menu.showPopover();
  const at = anchor.getBoundingClientRect();
  const top = at.bottom + menu.offsetHeight + 8 > innerHeight ? at.top - menu.offsetHeight - 4 : at.bottom + 4;
  menu.style.top = `${Math.max(8, top)}px`;
  menu.style.left = `${Math.max(8, Math.min(at.right - menu.offsetWidth, innerWidth - menu.offsetWidth - 8))}px`;
  menu.firstChild.focus();
  menu.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...menu.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  };
}

export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

export function seconds(ms) {
  if (ms > 0 && ms < 0.5) return "under 1 ms";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export function bytes(n) {
  return n < 1e6 ? `${Math.max(1, Math.round(n / 1e3))} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

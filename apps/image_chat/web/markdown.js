// A model's answer is text from a stranger. marked makes HTML of its markdown and shows HTML in it as text;
// DOMPurify lets through what is listed below and gives elements, never a string that this page would have to insert.
import { marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { h, icon } from "./dom.js";

const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
marked.use({ renderer: {
  html: ({ text }) => (/^<br\s*\/?>\s*$/i.test(text) ? "<br>" : escape(text)),
  image: ({ text }) => escape(text), // nothing is fetched for an answer
} });

const ALLOWED = {
  ALLOWED_TAGS: ["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code",
    "em", "strong", "del", "a", "table", "thead", "tbody", "tr", "th", "td"],
  ALLOWED_ATTR: ["href", "title", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

export function render(text) {
  const html = marked.parse(text, { async: false, gfm: true, breaks: true });
  const fragment = DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
  }
  // The page's own headings are h1 to h3: an answer's come below its question.
  for (const heading of [...fragment.querySelectorAll("h1, h2, h3, h4, h5, h6")]) {
    heading.replaceWith(h(`h${Math.min(6, Number(heading.tagName[1]) + 2)}`, {}, ...heading.childNodes));
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.tabIndex = 0;
    const frame = h("div.code", {}, copyButton("Copy code", () => pre.textContent));
    pre.replaceWith(frame);
    frame.prepend(pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div.table", { tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

// Shows for a moment that it worked.
export function copyButton(label, text) {
  const button = h("button.icon.copy", { type: "button", icon: "copy", "aria-label": label, title: label });
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.replaceChildren(icon(done ? "check" : "warn"));
    button.setAttribute("aria-label", done ? "Copied" : "Could not copy");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1600);
  });
  return button;
}

// The clipboard API is missing on plain http pages of other machines; selecting and copying is not.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea.hidden", { value: text, readOnly: true });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

// What a screen reader should say of markdown: its words.
export function plain(text) {
  return text.replace(/```[^\n]*\n?/g, " ").replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1").replace(/[*_`#>|~]+/g, "")
    .replace(/\s+/g, " ").trim();
}

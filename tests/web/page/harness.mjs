// A browser, the page in it, and what every test asserts without saying so: no error in the console, no exception,
// no request to another origin.
import assert from "node:assert/strict";
import { after, before, test as nodeTest } from "node:test";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { serve } from "../mock_server.mjs";
import { start } from "./server.mjs";

export const here = dirname(fileURLToPath(import.meta.url));
export const root = join(here, "../../..");
export const modules = process.env.LV_NODE_MODULES ?? join(here, "node_modules");
export const web = join(root, "apps/image_chat/web");
const { chromium } = createRequire(join(modules, "x.cjs"))("playwright-core");

export const picture = (name) => join(root, "assets/pictures", name);
export const sample = (name) => join(root, "tests/images", name);
export const real = Boolean(process.env.IMAGE_CHAT); // a path: the page is served by that program, not by the mock
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];

let browser;
let server;
let url;
before(async () => {
  server = real ? await start() : await serve(0);
  url = real ? server.url : `http://127.0.0.1:${server.address().port}/`;
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
});
after(async () => {
  await browser?.close();
  if (real) return server?.stop();
  server?.closeAllConnections();
  server?.close();
});

export const mock = (next) => fetch(`${url}mock`, { method: "POST", body: JSON.stringify(next) });

// test(name, options, body({page, url, open, server})): options.mock is what the mock does next (and keeps the test from
// a real server), options.args those of a real server of the test's own (and keep it from the mock); options.statuses
// are HTTP errors that belong to the test; the rest is for Playwright's context.
export function test(name, options, body) {
  const { mock: next, args, statuses = [], unready = false, ...context } = options;
  const skip = next && real ? "needs the mock server" : args && !real ? "needs image-chat" : false;
  nodeTest(name, { skip, timeout: 120000 }, async () => {
    if (!real) await mock(next ?? {});
    const own = args ? await start(args) : null;
    try {
      await inBrowser(own ?? server, own?.url ?? url, { statuses, unready, context }, body);
    } finally {
      await own?.stop();
    }
  });
}

async function inBrowser(served, at, { statuses, unready, context }, body) {
  const wrong = [];
  const opened = await browser.newContext({ viewport: { width: 1280, height: 800 }, permissions: ["clipboard-read", "clipboard-write"],
    ...context });
  opened.setDefaultTimeout(45000);
  const watch = (page) => {
    page.on("pageerror", (error) => wrong.push(`exception: ${error.stack}`));
    page.on("console", (message) => {
      const status = /status of (\d+)/.exec(message.text())?.[1];
      if (message.type() === "error" && !statuses.includes(Number(status ?? 0))) wrong.push(`console: ${message.text()}`);
    });
    page.on("request", (request) => {
      if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(at)) wrong.push(`request to ${request.url()}`);
    });
  };
  const open = async () => {
    const page = await opened.newPage();
    watch(page);
    await page.goto(at);
    if (!unready) await ready(page);
    return page;
  };
  try {
    const page = await open();
    await body({ page, url: at, open, server: served });
    await new Promise((resolve) => setTimeout(resolve, 50)); // what comes late
  } finally {
    await opened.close();
  }
  assert.deepEqual(wrong, []);
}

// What axe-core calls serious or critical.
const axe = await readFile(join(modules, "axe-core/axe.min.js"), "utf8");
export async function accessible(page, where) {
  await page.waitForTimeout(400); // colours in motion are not what is looked at
  await page.evaluate(axe); // not a script element: the page's policy refuses those
  const found = await page.evaluate(async () => (await window.axe.run(document, { resultTypes: ["violations"] })).violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`));
  assert.deepEqual(found, [], where);
}

export const ready = (page) => page.waitForSelector(".model[data-state=ready]", { state: "attached" });

// Asks and waits for the answer's end; gives the request's body.
export async function ask(page, text, files = []) {
  if (files.length) {
    const before = await page.locator("#tray li").count();
    await page.setInputFiles("#files", files);
    await page.waitForFunction((n) => document.querySelectorAll("#tray li").length === n, before + files.length);
  }
  await page.fill("#question", text);
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.press("#question", "Enter")]);
  await done(page);
  return request.postDataJSON();
}

// The answer is whole, saved, and all of the page knows.
export const done = (page) => page.waitForFunction(() => {
  const last = [...document.querySelectorAll("article.answer")].at(-1);
  return last && last.getAttribute("aria-busy") === "false" && !document.querySelector("#send.running");
});

export const answer = (page) => page.locator("article.answer").last();
export const texts = (page, selector) => page.locator(selector).allInnerTexts();

// What a person does with the mouse, without a mouse: files dropped on or pasted into the page.
export async function give(page, how, files) {
  const packed = await Promise.all(files.map(async ({ path, name, type }) =>
    ({ name, type, data: path ? (await readFile(path)).toString("base64") : Buffer.from("no picture").toString("base64") })));
  await page.evaluate(([kind, list]) => {
    const transfer = new DataTransfer();
    for (const { name, type, data } of list) {
      transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
    }
    const target = document.querySelector("#main");
    if (kind === "paste") target.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
    else {
      for (const step of ["dragenter", "dragover", ...(kind === "drop" ? ["drop"] : [])]) {
        target.dispatchEvent(new DragEvent(step, { dataTransfer: transfer, bubbles: true, cancelable: true }));
      }
    }
  }, [how, packed]);
}

export { assert };

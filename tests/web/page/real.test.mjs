// What only a real server has: numbers to be told truly, slots to be freed, refusals, an end; and its page /docs.
import { setTimeout as pause } from "node:timers/promises";
import { ENDLESS, start, until } from "./server.mjs";
import { accessible, answer, ask, assert, give, picture, ready, sample, test, texts } from "./harness.mjs";

const own = { args: [] };
const CHAT = "**/v1/chat/completions";
const last = (list) => list[list.length - 1];

// Changes what the page asks, so that the real server does what a test needs.
const alter = (page, change) => page.route(CHAT, (route) =>
  route.continue({ postData: JSON.stringify(change(route.request().postDataJSON())) }));
const endless = (page, more = {}) => alter(page, (body) => ({ ...body, ...ENDLESS, ...more }));
const words = (page) => page.waitForFunction(() =>
  [...document.querySelectorAll(".writing .prose")].at(-1)?.innerText.length > 60);
const idle = (server) => until(async () => await server.metric("chat_requests") === 0, "a server without requests");

async function begin(page, text, files = []) {
  if (files.length) {
    await page.setInputFiles("#files", files);
    await page.waitForFunction((n) => document.querySelectorAll("#tray li").length === n, files.length);
  }
  await page.fill("#question", text);
  await page.press("#question", "Enter");
  await words(page);
}

test("what the server measured is what the page tells", own, async ({ page, server }) => {
  let stream;
  await page.route(CHAT, async (route) => {
    const response = await route.fetch();
    stream = await response.text();
    await route.fulfill({ response, body: stream });
  });
  await ask(page, "How many eggs are there?", [picture("breakfast.png")]);
  await page.unroute(CHAT);
  const chunks = stream.split("\n\n").filter((event) => event.startsWith("data: {"));
  const { usage, timings, images: [image], model } = JSON.parse(last(chunks).slice(6));
  assert.equal(await answer(page).locator(".prose").innerText(), "There are two eggs.");
  await page.click(".facts summary");
  const shown = await page.innerText(".facts dl");
  for (const text of [`${image.width} × ${image.height}, 1 tile of ${image.tile_size} × ${image.tile_size}, ${image.tokens} tokens`,
    `${usage.prompt_tokens} tokens`, `${usage.completion_tokens} tokens`, model]) assert.ok(shown.includes(text), `${text}: ${shown}`);
  assert.equal(image.width, 600);
  const told = (await texts(page, ".legend li")).map((text) => /^(\w+) (?:under )?(\d+) ms$/.exec(text).slice(1));
  assert.deepEqual(told.map(([name]) => name), ["Preparing", "Looking", "Reading", "Writing"]);
  [timings.queue_ms, timings.encode_ms, timings.prefill_ms, timings.decode_ms].forEach((ms, i) =>
    assert.ok(Math.abs(ms - Number(told[i][1])) <= 1, `${told[i]}: ${ms} ms`));
  await ask(page, "Is there a cup?"); // the picture has been seen, the first turn read
  await page.locator(".facts summary").last().click();
  assert.match(last(await texts(page, ".facts dl")), /\d+ of them read before/);
  assert.equal(await server.metric("images_encoded_total"), 1);
  await page.click("#settings-open");
  assert.match(await page.innerText("#settings-body"), /demo-model\s+Device\s+\S+[^]*2,048 tokens at most/);
});

const long = { args: ["--session-len", "32768", "--rope-scaling", "dynamic:16"] }; // no machine is done before the reload
for (const way of ["button", "Escape", "reload", "deletion"]) {
  test(`stopped by ${way}: what was said stays, the slot is free`, { ...long, statuses: [0] }, async ({ page, server }) => {
    await endless(page, { max_tokens: 30000 });
    await begin(page, "Tell me all.", [picture("beach.png")]);
    assert.equal(await server.metric("running"), 1);
    if (way === "button") await page.click("#send.running");
    if (way === "Escape") await page.keyboard.press("Escape");
    if (way === "reload") {
      await page.waitForTimeout(2500); // it is saved every other second
      await page.reload();
    }
    if (way === "deletion") {
      await page.click(".list li > .icon");
      await page.click("#menu >> text=Delete");
    }
    await idle(server);
    assert.equal(await server.metric("running"), 0);
    if (way === "deletion") {
      await page.waitForSelector(".toast >> text=Deleted"); // the server may be told before the storage is done
      assert.equal(await page.isVisible("#empty"), true);
      assert.equal(await page.locator(".list li").count(), 0);
      return;
    }
    await page.waitForSelector(".note >> text=Stopped here");
    assert.ok((await answer(page).locator(".prose").innerText()).length > 60);
    await page.unroute(CHAT);
    await ready(page);
    await page.click("[aria-label='Answer again']");
    await page.waitForFunction(() => document.querySelector(".answer[aria-busy=false] .facts"));
    assert.match(await answer(page).locator(".prose").innerText(), /crab/);
    assert.equal(await page.locator("article.answer").count(), 1);
  });
}

test("what is below an edited question is dropped, and the pasted picture stays", own, async ({ page }) => {
  await give(page, "paste", [{ path: picture("beach.png"), name: "beach.png", type: "image/png" }]);
  await page.waitForSelector("#tray li");
  await ask(page, "Is there a cat?");
  assert.match(await answer(page).locator(".prose").innerText(), /no cat/);
  await ask(page, "Describe this picture.");
  await page.locator("[aria-label='Edit and ask again']").first().click();
  await page.fill(".edit textarea", "Is there a crab?");
  await page.press(".edit textarea", "Enter");
  await page.waitForFunction(() => document.querySelectorAll("article.answer[aria-busy=false]").length === 1);
  await page.waitForSelector(".prose >> text=there is a crab");
  await page.reload();
  await page.waitForSelector(".prose >> text=there is a crab");
  assert.equal(await page.locator(".plate img").count(), 1);
  assert.deepEqual(await texts(page, ".asked h2"), ["Is there a crab?"]);
});

test("pictures over the server's limits are refused before they are sent",
  { args: ["--max-images", "2", "--max-image-bytes", "100K", "--max-pixels", "50000"] }, async ({ page }) => {
    await page.setInputFiles("#files", [picture("park.png")]);
    await page.waitForSelector(".toast >> text=/park.png has .*at most .*B are taken|park.png has .* pixels; at most 50,000/");
    await page.setInputFiles("#files", Array(3).fill(sample("rgb.png")));
    await page.waitForSelector(".toast >> text=2 pictures at most");
    assert.equal(await page.locator("#tray li").count(), 2);
  });

test("a link where the server fetches none", own, async ({ page }) => {
  await page.click(".sources [data-source=link]");
  assert.match(await page.innerText("#link"), /fetches no pictures[^]*--allow-url-fetch/);
  assert.equal(await page.isDisabled("#link-add"), true);
  await accessible(page, "link");
});

test("a link where it fetches: an address inside is not dialled, and that is told", { args: ["--allow-url-fetch"], statuses: [400] },
  async ({ page }) => {
    await page.click(".sources [data-source=link]");
    await page.fill("#link-input", "http://127.0.0.1:9/cat.jpg");
    await page.click("#link-add");
    await ask(page, "What is this?");
    assert.match(await page.innerText(".failure"), /could not take this[^]*URL could not be fetched/);
  });

const cut = (body) => {
  const url = body.messages[0].content[0].image_url;
  url.url = url.url.slice(0, "data:image/png;base64,".length + 400);
  return body;
};
for (const [what, change, status, said] of [
  ["a truncated picture", cut, 400, /could not take this[^]*passes the end of the file/],
  ["a field past its bounds", (body) => ({ ...body, temperature: 3 }), 400, /could not take this[^]*temperature: expected a number from 0 to 2/],
  ["too long a conversation", (body) => ({ ...body, messages: [{ role: "system", content: "crab ".repeat(5000) }, ...body.messages] }), 413,
    /more than the server takes[^]*tokens/],
]) {
  test(`${what} is refused in words, with a way out`, { ...own, statuses: [status] }, async ({ page }) => {
    await alter(page, change);
    await ask(page, "Is there a dog?", [picture("park.png")]);
    assert.match(await page.innerText(".failure"), said);
    await page.unroute(CHAT);
    await page.click(".failure >> text=Change the question");
    await page.press("#question", "Enter"); // at once: the page must be ready for it
    await page.waitForFunction(() => document.querySelector(".answer[aria-busy=false]") && !document.querySelector(".failure"));
    assert.match(await answer(page).locator(".prose").innerText(), /Yes, there is a dog/);
    await page.reload();
    await page.waitForSelector(".plate img");
    assert.deepEqual(await texts(page, ".asked h2"), ["Is there a dog?"]);
    assert.equal(await page.locator(".list li").count(), 1);
  });
}

test("a full queue is told, and the same question asked again", { args: ["--max-requests", "2"], statuses: [429] }, async ({ page, server }) => {
  const control = new AbortController();
  const others = [1, 2].map((seed) => server.post({ ...ENDLESS, seed, stream: true, messages: [{ role: "user", content: "Tell me all." }] },
    control.signal));
  await Promise.all(others);
  await ask(page, "Is there a dog?", [picture("park.png")]);
  assert.match(await page.innerText(".failure"), /is busy[^]*Try again in a second/);
  control.abort();
  await idle(server);
  await page.click(".failure button >> text=Try again");
  await page.waitForSelector(".prose >> text=Yes, there is a dog");
});

test("a key is asked for", { args: ["--api-key", "s3cret"], statuses: [401], unready: true }, async ({ page }) => {
  await page.click(".notice >> text=Enter the key");
  await page.fill("#key-input", "s3cret");
  await page.press("#key-input", "Enter");
  await ready(page);
  await ask(page, "Is there a dog?", [picture("park.png")]);
  assert.match(await answer(page).locator(".prose").innerText(), /Yes, there is a dog/);
});

test("a server that ends in the middle of an answer is told, and found again", { args: ["--drain-timeout", "0"], statuses: [0] },
  async ({ page, server }) => {
    await endless(page);
    await begin(page, "Is there a crab?", [picture("beach.png")]);
    server.kill("SIGTERM");
    await page.waitForSelector(".failure");
    assert.match(await page.innerText(".failure"), /broke off/);
    assert.equal(await server.ended, 0);
    await page.unroute(CHAT);
    await page.click(".failure button >> text=Try again");
    await page.waitForSelector(".failure >> text=does not answer");
    await page.waitForSelector(".notice.offline:visible");
    const again = await start([], server.port);
    try {
      await ready(page);
      await page.click(".failure button >> text=Try again");
      await page.waitForSelector(".prose >> text=Yes, there is a crab");
    } finally {
      await again.stop();
    }
  });

test("an answer is followed to its end, an error too, unless the reader turns back", { ...own, statuses: [400],
  viewport: { width: 390, height: 700 } }, async ({ page }) => {
  const gap = () => page.evaluate(() => {
    const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#scroll");
    return scrollHeight - scrollTop - clientHeight;
  });
  await ask(page, "Is there a crab?", [picture("beach.png")]);
  await ask(page, "Describe this picture.");
  await until(async () => await gap() < 4, "the end of the answer");
  await alter(page, (body) => ({ ...body, temperature: 3 }));
  await ask(page, "And here?", [picture("park.png")]);
  await until(async () => await gap() < 4, "the end of the error");
  await page.unroute(CHAT);
  await endless(page);
  await begin(page, "Tell me all.");
  await until(async () => await gap() < 40, "the words");
  await page.mouse.move(200, 300);
  await page.mouse.wheel(0, -400);
  await pause(500);
  const before = await page.evaluate(() => document.querySelector("#scroll").scrollTop);
  await pause(500);
  assert.equal(await page.evaluate(() => document.querySelector("#scroll").scrollTop), before);
  assert.equal(await page.isVisible("#latest"), true);
  await page.keyboard.press("Escape");
});

for (const colorScheme of ["light", "dark"]) {
  for (const [size, viewport] of [["wide", { width: 1280, height: 800 }], ["narrow", { width: 390, height: 844 }]]) {
    test(`axe finds nothing serious on a real answer: ${colorScheme}, ${size}`, { ...own, colorScheme, viewport, statuses: [400] },
      async ({ page }) => {
        await accessible(page, "empty");
        await ask(page, "Describe this picture.", [picture("beach.png"), picture("park.png")]);
        await page.locator(".facts summary").click();
        await accessible(page, "answered");
        await endless(page);
        await begin(page, "Tell me all.");
        await accessible(page, "in the middle of an answer");
        await page.keyboard.press("Escape");
        await page.waitForSelector(".note >> text=Stopped here");
        await accessible(page, "stopped");
        await page.unroute(CHAT);
        await alter(page, (body) => ({ ...body, temperature: 3 }));
        await ask(page, "And now?");
        await accessible(page, "error");
        await page.click("#settings-open");
        await accessible(page, "settings");
      });
    test(`/docs: axe finds nothing serious: ${colorScheme}, ${size}`, { ...own, colorScheme, viewport }, async ({ page, url }) => {
      await page.goto(`${url}docs`);
      await page.waitForSelector("#operations .card");
      await accessible(page, "closed");
      await page.evaluate(() => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
      await accessible(page, "all of it open");
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.ok(wide <= 0, `${wide} pixels stick out`);
    });
  }
}

test("/docs sends requests: a picture, a stream, a stop, every GET", { args: ["--api-key", "s3cret"], statuses: [401], unready: true },
  async ({ page, url, server }) => {
    await page.goto(`${url}docs`);
    await page.waitForFunction(() => /wants an API key/.test(document.querySelector("#about").innerText));
    await page.fill("#key", "s3cret");
    await page.press("#key", "Enter");
    const card = page.locator("#operations .card").filter({ hasText: "/v1/chat/completions" }).first();
    await card.locator("input[type=file]").setInputFiles(picture("beach.png"));
    await page.waitForFunction(() => document.querySelector("textarea").value.includes("data:image/png"));
    await card.locator("button.send").click();
    await page.waitForFunction(() => document.querySelector("#operations pre").innerText.includes("[DONE]"));
    assert.match(await card.locator("pre").innerText(), /^200 [^]*chat\.completion\.chunk[^]*"tokens":169/);
    await card.locator("textarea").fill(JSON.stringify({ ...ENDLESS, stream: true, messages: [{ role: "user", content: "Tell me all." }] }));
    await card.locator("button.send").click();
    await page.waitForFunction(() => document.querySelector("#operations pre").innerText.split("data: ").length > 20);
    await card.locator("button >> text=Stop").click();
    await idle(server);
    assert.match(await card.locator("pre").innerText(), /stopped/);
    for (const path of ["/v1/models", "/health", "/metrics", "/openapi.json"]) {
      const one = page.locator("#operations .card").filter({ has: page.locator(`.path:text-is("${path}")`) });
      await one.locator("summary").click();
      await one.locator("button.send").click();
      await until(async () => /^200 /.test(await one.locator("pre").innerText()), path);
    }
  });

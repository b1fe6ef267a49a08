// Conversations: kept, found, renamed, deleted, exported, imported.
import { readFile } from "node:fs/promises";
import { answer, ask, assert, done, mock, picture, ready, test, texts } from "./harness.mjs";

const menu = async (page, title, item) => {
  const entry = page.locator(".list li", { hasText: title });
  await entry.hover();
  await entry.locator("> .icon").click();
  await page.click(`#menu >> text=${item}`);
};
const titles = (page) => texts(page, ".list .title");
const exported = async (page, action) => {
  const [download] = await Promise.all([page.waitForEvent("download"), action()]);
  return JSON.parse(await readFile(await download.path(), "utf8"));
};
const file = (value, name = "conversations.json") => ({ name, mimeType: "application/json",
  buffer: Buffer.from(typeof value === "string" ? value : JSON.stringify(value)) });

test("a reload finds the conversation with its pictures", {}, async ({ page }) => {
  await ask(page, "How many eggs are there?", [picture("breakfast.png")]);
  const before = await page.innerText("#scenes");
  await page.reload();
  await page.waitForSelector("article.answer");
  assert.equal(await page.innerText("#scenes"), before);
  await page.waitForFunction(() => document.querySelector(".plate img")?.naturalWidth === 600);
  assert.deepEqual(await titles(page), ["How many eggs are there?"]);
  const body = await ask(page, "And how many cups?");
  assert.equal(body.messages.length, 3);
  assert.equal(body.messages[0].content[0].image_url.url.split(",")[1], (await readFile(picture("breakfast.png"))).toString("base64"));
});

test("a reload in the middle of an answer keeps what was said", { mock: { word_ms: 150 } }, async ({ page }) => {
  await page.fill("#question", "Describe it");
  await page.press("#question", "Enter");
  await page.waitForFunction(() => document.querySelector(".prose")?.textContent.split(" ").length > 18);
  await page.reload();
  await ready(page);
  assert.match(await answer(page).innerText(), /^The picture shows[^]*Stopped here/);
});

test("renamed, searched, deleted, brought back", {}, async ({ page }) => {
  await ask(page, "Is there a dog?", [picture("park.png")]);
  await page.click("#new");
  await ask(page, "How many eggs are there?", [picture("breakfast.png")]);
  assert.deepEqual(await titles(page), ["How many eggs are there?", "Is there a dog?"]);
  await menu(page, "Is there a dog", "Rename");
  await page.fill(".rename", "The park");
  await page.press(".rename", "Enter");
  await page.waitForSelector(".list .title >> text=The park");
  await page.keyboard.press("Control+k");
  await page.keyboard.type("park");
  assert.deepEqual(await titles(page), ["The park"]);
  await page.fill("#search", "is there a dog");
  assert.deepEqual(await texts(page, ".list .below"), ["Is there a dog?"]); // found in what was said
  await page.fill("#search", "zebra crossing");
  assert.match(await page.innerText("#list"), /Nothing found/);
  await page.fill("#search", "");
  await menu(page, "How many eggs", "Delete");
  await page.waitForSelector(".toast >> text=Deleted");
  assert.deepEqual(await titles(page), ["The park"]);
  assert.equal(await page.isVisible("#empty"), true);
  await page.click(".toast >> text=Undo");
  await page.waitForSelector(".list .title >> text=How many eggs");
  await menu(page, "The park", "Delete");
  await page.waitForSelector(".toast >> text=Deleted “The park”");
  await page.reload();
  await ready(page);
  assert.deepEqual(await titles(page), ["How many eggs are there?"]);
  await page.click(".list .open");
  await page.waitForFunction(() => document.querySelector(".plate img")?.naturalWidth === 600);
});

test("deleted in the middle of its answer, it stays deleted", { mock: { word_ms: 100 } }, async ({ page }) => {
  await page.fill("#question", "Is there a dog?");
  await page.press("#question", "Enter");
  await page.waitForFunction(() => document.querySelector(".prose")?.textContent.length > 10);
  await menu(page, "Is there a dog", "Delete");
  await page.waitForSelector(".toast >> text=Deleted");
  await page.waitForTimeout(300);
  assert.deepEqual(await titles(page), []);
  await page.reload();
  await ready(page);
  assert.deepEqual(await titles(page), []);
});

test("exported and imported elsewhere: the same words, the same bytes", {}, async ({ page, open }) => {
  await ask(page, "What do these have in common?", [picture("beach.png"), picture("park.png")]);
  await page.click("#new");
  await ask(page, "Hello");
  const one = await exported(page, () => menu(page, "What do these", "Export"));
  assert.equal(one.conversations.length, 1);
  const all = await exported(page, () => page.click("#export-all"));
  assert.equal(all.conversations.length, 2);
  const [first] = one.conversations[0].messages;
  assert.deepEqual(first.pictures.map((p) => p.name), ["beach.png", "park.png"]);
  assert.equal(first.pictures[0].data, (await readFile(picture("beach.png"))).toString("base64"));

  await page.evaluate(async () => {
    for (const { name } of await indexedDB.databases()) indexedDB.deleteDatabase(name);
  });
  await page.close();
  const fresh = await open();
  assert.deepEqual(await titles(fresh), []);
  await fresh.setInputFiles("#import-file", file(all));
  await fresh.waitForSelector(".toast >> text=Imported 2 conversations");
  assert.deepEqual(await titles(fresh), ["Hello", "What do these have in common?"]);
  await fresh.setInputFiles("#import-file", file(all));
  await fresh.waitForSelector(".toast >> text=2 were here already");
  await fresh.locator(".list .open").nth(1).click();
  await fresh.waitForFunction(() => [...document.querySelectorAll(".plate img")].map((i) => i.naturalWidth).join() === "640,640");
  const again = await exported(fresh, () => fresh.click("#export-all"));
  assert.deepEqual(again, all);
});

test("a file that is not right is refused whole, with the reason", {}, async ({ page }) => {
  const good = { format: "image-chat conversations", version: 1, conversations: [{ id: "0123456789ab", title: "T", created: 1, updated: 1,
    messages: [{ role: "user", text: "q", pictures: [] }] }] };
  const but = (change) => {
    const value = structuredClone(good);
    change(value.conversations[0], value);
    return value;
  };
  const cases = [
    ["not json", /not a JSON file/], [[], /an object was expected/], [{ format: "else" }, /not exported by image-chat/],
    [{ ...good, version: 2 }, /newer image-chat/], [{ ...good, conversations: {} }, /a list was expected/],
    [but((c) => { c.id = "<img>"; }), /conversations\[0\]\.id: not an id/],
    [but((c) => { c.title = 5; }), /title: a text was expected/],
    [but((c) => { c.title = "x".repeat(301); }), /title: longer than 300/],
    [but((c) => { c.created = -1; }), /created: a number/],
    [but((c) => { c.messages[0].role = "system"; }), /role: expected/],
    [but((c) => { c.messages[0].pictures = [{ name: "a", data: "!!" }]; }), /pictures\[0\]\.data: not base64/],
    [but((c) => { c.messages[0].pictures = [{ name: "a", data: btoa("<svg onload=alert(1)>") }]; }), /is not a JPEG/],
    [but((c) => { c.messages[0].pictures = [{ name: "a", link: "javascript:alert(1)" }]; }), /http or https/],
    [but((c) => { c.messages.push({ role: "assistant", text: "a", info: { usage: { prompt_tokens: "x" } } }); }), /prompt_tokens: a number/],
  ];
  for (const [value, reason] of cases) {
    await page.setInputFiles("#import-file", file(value));
    const toast = page.locator(".toast", { hasText: "Nothing was imported" });
    await toast.waitFor();
    assert.match(await toast.innerText(), reason);
    await toast.locator(".icon").click();
  }
  assert.deepEqual(await titles(page), []);
  await page.setInputFiles("#import-file", file(good));
  await page.waitForSelector(".toast >> text=Imported 1 conversation");
});

test("asked as soon as the page lets one, a question is kept, however slow the storage", {}, async ({ page, open }) => {
  await page.context().addInitScript(() => {
    const { get, set } = Object.getOwnPropertyDescriptor(IDBRequest.prototype, "onsuccess");
    Object.defineProperty(IDBRequest.prototype, "onsuccess", { configurable: true, get,
      set(answer) { set.call(this, (event) => setTimeout(() => answer.call(this, event), 700)); } });
  });
  const slow = await open();
  await ask(slow, "Is there a dog?", [picture("park.png")]);
  assert.deepEqual(await titles(slow), ["Is there a dog?"]);
  await slow.reload();
  await slow.waitForSelector("article.answer");
  await slow.waitForSelector(".plate img");
  assert.deepEqual(await titles(slow), ["Is there a dog?"]);
});

test("a conversation that begins with \"Describe\" is named by its answer", { mock: {} }, async ({ page }) => {
  await ask(page, "Describe this picture.", [picture("beach.png")]);
  assert.deepEqual(await titles(page), ["A crab, a palm tree, a sailboat and a sun at the beach"]);
});

test("pictures that no turn shows any more are let go", {}, async ({ page }) => {
  const kept = () => page.evaluate(() => new Promise((resolve) => {
    indexedDB.open("image-chat").onsuccess = ({ target }) => {
      target.result.transaction("pictures").objectStore("pictures").count().onsuccess = (event) => resolve(event.target.result);
    };
  }));
  await ask(page, "Is there a dog?", [picture("park.png")]);
  await ask(page, "And here?", [picture("beach.png")]);
  assert.equal(await kept(), 2);
  await page.locator("[aria-label^='Answer again']").first().click();
  await page.waitForFunction(() => document.querySelectorAll(".scene").length === 1);
  await done(page);
  assert.equal(await kept(), 1);
});

test("a full disk is told", { mock: {} }, async ({ page }) => {
  await mock({});
  await page.evaluate(() => {
    IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
  });
  await ask(page, "Hello");
  await page.waitForSelector(".toast >> text=storage is full");
});

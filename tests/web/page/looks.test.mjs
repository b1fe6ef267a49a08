// Light and dark, wide and narrow, keyboard, screen reader, axe.
import { accessible, answer, ask, assert, done, picture, ready, test, texts } from "./harness.mjs";

const MARKDOWN = "# Title\n\nSome **bold** and `code`, [a link](https://example.org).\n\n- one\n- two\n\n> said\n\n```js\nlet x = 1;\n```\n\n"
  + "| a | b |\n| --- | --- |\n| 1 | 2 |\n";

for (const colorScheme of ["light", "dark"]) {
  for (const [size, viewport] of [["wide", { width: 1280, height: 800 }], ["narrow", { width: 390, height: 844 }]]) {
    test(`axe finds nothing serious: ${colorScheme}, ${size}`, { mock: { text: MARKDOWN }, colorScheme, viewport }, async ({ page }) => {
      await accessible(page, "empty");
      await page.setInputFiles("#files", [picture("beach.png"), picture("park.png")]);
      await page.waitForSelector("#tray li:nth-child(2)");
      await accessible(page, "pictures attached");
      await ask(page, "What are these?");
      await page.click(".facts summary");
      await accessible(page, "answered");
      await page.click("[aria-label='Edit and ask again']");
      await accessible(page, "editing");
      await page.keyboard.press("Escape");
      await page.click("#settings-open");
      await accessible(page, "settings");
      await page.keyboard.press("Escape");
      if (size === "narrow") await page.click("#sidebar-open");
      await accessible(page, "conversations");
      await page.click(".list li > .icon");
      await accessible(page, "menu");
      await page.keyboard.press("Escape");
      if (size === "narrow") await page.click("#sidebar-close");
      await page.locator(".plate .see").first().click();
      await accessible(page, "large picture");
    });
    test(`axe finds nothing serious in trouble: ${colorScheme}, ${size}`, { mock: { fail: { status: 429, retryAfter: 3 } }, statuses: [429],
      colorScheme, viewport }, async ({ page }) => {
      await ask(page, "Is there a dog?", [picture("park.png")]);
      await accessible(page, "error");
      await page.setInputFiles("#files", { name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("x") });
      await page.waitForSelector(".toast");
      await accessible(page, "toast");
      await page.click(".composer [data-source=link]");
      await accessible(page, "link");
    });
  }
}

test("the theme follows the system until it is chosen, and the choice stays", { colorScheme: "dark" }, async ({ page }) => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await ground();
  await page.emulateMedia({ colorScheme: "light" });
  const light = await ground();
  assert.notEqual(dark, light);
  await page.click("#theme"); // system -> light -> dark
  await page.click("#theme");
  assert.equal(await ground(), dark);
  await page.reload();
  await ready(page);
  assert.equal(await ground(), dark);
  await page.click("#settings-open");
  await page.click(".choices >> text=System");
  assert.equal(await ground(), light);
});

test("a phone's width: nothing sticks out, the list is a drawer", { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true },
  async ({ page }) => {
    const fits = async (where) => assert.deepEqual(await page.evaluate(() => [document.documentElement, document.querySelector("#scroll"),
      document.querySelector(".dock")].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.className)), [], where);
    await fits("empty");
    await ask(page, `What is ${"averylongwordwithoutanyend".repeat(6)}?`, [picture("beach.png"), picture("breakfast.png"), picture("park.png")]);
    await fits("answered");
    assert.equal(await page.isVisible("#sidebar"), false);
    await page.click("#sidebar-open");
    assert.equal(await page.isVisible("#sidebar"), true);
    assert.equal(await page.evaluate(() => document.querySelector("#main").inert), true);
    await page.keyboard.press("Escape");
    assert.equal(await page.isVisible("#sidebar"), false);
    assert.equal(await page.evaluate(() => document.activeElement.id), "sidebar-open");
    await page.click("#sidebar-open");
    await page.locator(".list .open").click();
    await page.waitForSelector("#sidebar", { state: "hidden" });
    await page.click("#settings-open");
    await fits("settings");
    const small = await page.evaluate(() => [...document.querySelectorAll(".composer button, .bar button")].filter((b) => b.offsetParent)
      .map((b) => b.getBoundingClientRect()).filter((r) => r.width < 36 || r.height < 36).length);
    assert.equal(small, 0); // room for a thumb
  });

test("by keyboard alone", {}, async ({ page }) => {
  await page.focus(".skip");
  assert.equal(await page.evaluate(() => document.elementFromPoint(60, 30).className), "skip"); // seen once it is reached
  await page.keyboard.press("Enter");
  await page.keyboard.type("One");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  assert.equal(await page.inputValue("#question"), "One\ntwo");
  await page.keyboard.press("Enter");
  await page.waitForSelector("article.answer");
  await done(page);
  assert.equal(await page.innerText(".asked h2"), "One\ntwo");
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await page.keyboard.press("Control+k");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.press("Control+Shift+O");
  assert.equal(await page.isVisible("#empty"), true);
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await page.focus("#settings-open");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.querySelector("#settings").contains(document.activeElement)), true);
  await page.keyboard.press("Escape");
  assert.equal(await page.evaluate(() => document.activeElement.id), "settings-open");
  await page.focus(".list li > .icon");
  await page.keyboard.press("Enter");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Export");
  await page.keyboard.press("Escape");
  assert.equal(await page.isVisible("#menu"), false);
});

test("a screen reader hears whole sentences, each once", { mock: { text: "One **thing** is here. Another follows. And the `last`", word_ms: 40 } },
  async ({ page }) => {
    await ask(page, "Describe it");
    await page.waitForFunction(() => document.querySelectorAll("#said p").length === 3);
    assert.deepEqual(await page.locator("#said p").allTextContents(), ["One thing is here.", "Another follows.", "And the last"]);
    assert.equal(await page.getAttribute("#said", "aria-live"), "polite");
    assert.equal(await answer(page).getAttribute("aria-live"), null);
  });

test("who wants less motion gets none", { reducedMotion: "reduce", mock: { wait_ms: 800 } }, async ({ page }) => {
  await page.setInputFiles("#files", picture("beach.png"));
  await page.waitForSelector("#tray li");
  await page.press("#question", "Enter");
  await page.waitForSelector(".looking .corners", { state: "attached" });
  const moving = await page.evaluate(() => document.getAnimations().filter((a) => a.effect.getComputedTiming().activeDuration > 100).length);
  assert.equal(moving, 0);
  await done(page);
  assert.deepEqual(await texts(page, ".asked h2"), ["Describe this picture."]); // nothing typed: this is asked
});

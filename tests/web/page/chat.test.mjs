// Asking: streams, stop, answer again, edit, settings.
import { readFile } from "node:fs/promises";
import { answer, ask, assert, done, give, mock, picture, sample, test, texts } from "./harness.mjs";

test("a dropped picture is asked about, byte for byte, and the answer streams in", {}, async ({ page }) => {
  await give(page, "over", [{ path: picture("beach.png"), name: "beach.png", type: "image/png" }]);
  assert.equal(await page.isVisible("#drop"), true);
  await give(page, "drop", [{ path: picture("beach.png"), name: "beach.png", type: "image/png" }]);
  assert.equal(await page.isVisible("#drop"), false);
  await page.waitForSelector("#tray li");
  assert.equal(await page.locator(".plate img").count(), 1); // large already, before it is sent
  const body = await ask(page, "What is at the beach?");
  assert.equal(body.stream, true);
  assert.deepEqual(body.stream_options, { include_usage: true });
  const [{ role, content }] = body.messages;
  assert.equal(role, "user");
  assert.deepEqual(content[1], { type: "text", text: "What is at the beach?" });
  assert.equal(content[0].image_url.url, `data:image/png;base64,${(await readFile(picture("beach.png"))).toString("base64")}`);
  assert.match(await answer(page).locator(".prose").innerText(), /\w{2}/);
  assert.match(await page.innerText(".facts summary"), /640 × 480\s+1 tile\s+\d+ tokens, \d+\/s\s+\S+ m?s/);
  assert.equal(await page.locator(".scene .plate img").count(), 1);
  assert.equal(await page.locator("#tray li").count(), 0);
});

test("EXIF orientation is shown as the server will see it, and sent as it is", {}, async ({ page }) => {
  await page.setInputFiles("#files", sample("exif_6.jpg"));
  await page.waitForSelector(".plate img");
  const { width, height } = await page.evaluate(() => {
    const image = document.querySelector(".plate img");
    return { width: image.naturalWidth, height: image.naturalHeight };
  });
  assert.equal(await page.locator(".plate .caption span").last().innerText(), `${width} × ${height}`);
  const body = await ask(page, "Describe this picture.");
  assert.equal(body.messages[0].content[0].image_url.url.split(",")[1], (await readFile(sample("exif_6.jpg"))).toString("base64"));
});

test("what it took is told: size and tiles, tokens, time by stage", { mock: {} }, async ({ page }) => {
  await ask(page, "How many eggs are there?", [picture("breakfast.png")]);
  assert.deepEqual(await texts(page, ".facts summary span"), ["640 × 480", "1 tile", "4 tokens, 135/s", "136 ms"]);
  await page.click(".facts summary");
  assert.deepEqual(await texts(page, ".legend li"), ["Preparing 1 ms", "Looking 42 ms", "Reading 64 ms", "Writing 30 ms"]);
  assert.match(await page.innerText(".facts dl"), /640 × 480, 1 tile of 208 × 208, 169 tokens[^]*207 tokens, 3 of them read before/);
});

test("follow-up questions carry the conversation", {}, async ({ page }) => {
  await ask(page, "Is there a dog?", [picture("park.png")]);
  const said = await answer(page).locator(".prose").innerText();
  const body = await ask(page, "What else is there?");
  assert.deepEqual(body.messages.map((m) => m.role), ["user", "assistant", "user"]);
  assert.equal(body.messages[0].content.length, 2);
  assert.equal(body.messages[1].content.trim(), said.trim());
  assert.equal(await page.locator(".scene").count(), 1); // the same pictures: one scene
  await ask(page, "And here?", [picture("beach.png")]);
  assert.equal(await page.locator(".scene").count(), 2);
});

for (const way of ["button", "Escape"]) {
  test(`stop by ${way} keeps what was said and tells the server`, { mock: { word_ms: 120 } }, async ({ page }) => {
    const gone = page.waitForEvent("requestfailed", (r) => r.url().includes("/chat/completions"));
    await page.setInputFiles("#files", picture("beach.png"));
    await page.fill("#question", "Describe this picture.");
    await page.press("#question", "Enter");
    await page.waitForFunction(() => document.querySelector(".prose")?.textContent.split(" ").length > 3);
    if (way === "button") await page.click("#send");
    else await page.keyboard.press("Escape");
    await gone;
    await done(page);
    const kept = await answer(page).locator(".prose").innerText();
    assert.match(kept, /^The picture shows/);
    assert.match(await answer(page).locator(".note").innerText(), /Stopped/);
    await page.waitForTimeout(300);
    assert.equal(await answer(page).locator(".prose").innerText(), kept);
    assert.equal(await page.getAttribute("#send", "aria-label"), "Send");
  });
}

test("an answer is given again in place of itself", {}, async ({ page }) => {
  const first = await ask(page, "How many eggs are there?", [picture("breakfast.png")]);
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.click("[aria-label='Answer again']")]);
  await done(page);
  assert.deepEqual(request.postDataJSON().messages, first.messages);
  assert.equal(await page.locator("article.answer").count(), 1);
});

test("an edited question is asked again, and what was below is cut", {}, async ({ page }) => {
  await ask(page, "Is there a cat?", [picture("park.png")]);
  await ask(page, "Where is it?");
  await page.locator("[aria-label='Edit and ask again']").first().click();
  assert.match(await page.innerText(".edit .hint"), /3 turns below/);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".edit").count(), 0);
  await page.locator("[aria-label='Edit and ask again']").first().click();
  await page.fill(".edit textarea", "Is there a dog?");
  const [request] = await Promise.all([page.waitForRequest("**/v1/chat/completions"), page.press(".edit textarea", "Enter")]);
  await done(page);
  const { messages } = request.postDataJSON();
  assert.equal(messages.length, 1);
  assert.equal(messages[0].content[1].text, "Is there a dog?");
  assert.equal(messages[0].content[0].type, "image_url");
  assert.deepEqual(await texts(page, ".asked h2"), ["Is there a dog?"]);
});

test("an answer is copied as it was written", { mock: { text: "Some *words* here." } }, async ({ page }) => {
  await ask(page, "Describe it");
  await page.click("[aria-label='Copy the answer']");
  await page.waitForSelector("[aria-label=Copied]");
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "Some *words* here.");
});

test("code is shown as code and copied without its fence", { mock: { text: "So:\n\n```c\nint x = 1 < 2;\n```\n" } }, async ({ page }) => {
  await ask(page, "Show me code");
  assert.equal((await page.innerText(".code pre")).trim(), "int x = 1 < 2;");
  await page.click(".code [aria-label='Copy code']");
  await page.waitForSelector(".code [aria-label=Copied]");
  assert.equal((await page.evaluate(() => navigator.clipboard.readText())).trim(), "int x = 1 < 2;");
});

test("settings are sent, held to their bounds, kept and reset", {}, async ({ page }) => {
  await page.click("#settings-open");
  await page.fill("#set-system", "Answer briefly.");
  for (const [name, value] of [["temperature", "9"], ["top_p", "0.5"], ["top_k", "40"], ["max_tokens", "64"], ["seed", "7"],
    ["repetition_penalty", "1.1"]]) {
    await page.fill(`#set-${name}`, value);
    await page.press(`#set-${name}`, "Tab");
  }
  assert.equal(await page.inputValue("#set-temperature"), "2");
  await page.keyboard.press("Escape");
  await page.reload();
  await page.waitForSelector(".model[data-state=ready]");
  const body = await ask(page, "Hello");
  const sent = ({ temperature, top_p, top_k, max_tokens, seed, repetition_penalty }) =>
    ({ temperature, top_p, top_k, max_tokens, seed, repetition_penalty });
  assert.deepEqual(sent(body), { temperature: 2, top_p: 0.5, top_k: 40, max_tokens: 64, seed: 7, repetition_penalty: 1.1 });
  assert.deepEqual(body.messages[0], { role: "system", content: "Answer briefly." });
  await page.click("#settings-open");
  await page.click("text=Reset all to the standard");
  await page.keyboard.press("Escape");
  const after = await ask(page, "Hello again");
  assert.deepEqual(sent(after), { temperature: 0.2, top_p: 0.7, top_k: 0, max_tokens: 512, seed: undefined, repetition_penalty: 1 });
  assert.equal(after.messages[0].role, "user");
});

test("an answer cut at its longest says so", { mock: {} }, async ({ page }) => {
  await page.click("#settings-open");
  await page.fill("#set-max_tokens", "3");
  await page.press("#set-max_tokens", "Tab");
  await page.keyboard.press("Escape");
  await ask(page, "Describe it");
  assert.match(await page.innerText(".answer .note"), /Cut at the longest answer/);
});

test("one conversation answers while another is read", { mock: { word_ms: 60 } }, async ({ page }) => {
  await page.fill("#question", "Is there a dog?");
  await page.press("#question", "Enter");
  await page.waitForSelector(".writing");
  await page.click("#new");
  assert.equal(await page.isVisible("#empty"), true);
  await mock({});
  await ask(page, "How many eggs are there?");
  assert.deepEqual(await texts(page, ".asked h2"), ["How many eggs are there?"]);
  await page.locator(".list .open", { hasText: "Is there a dog" }).click();
  await page.waitForSelector(".asked h2 >> text=Is there a dog?");
  await done(page);
  assert.match(await answer(page).locator(".prose").innerText(), /Yes, there is a dog\. .* bicycle\./);
});

test("a sample is one click", {}, async ({ page }) => {
  await page.locator("#samples button").first().click();
  await page.waitForSelector("article.answer");
  await done(page);
  assert.equal(await page.locator(".plate img").count(), 1);
  assert.match(await answer(page).locator(".prose").innerText(), /\w{2}/);
});

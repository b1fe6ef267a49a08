// Pictures on their way in.
import { ask, assert, give, picture, sample, test, texts } from "./harness.mjs";

const names = (page) => page.locator("#tray .see").evaluateAll((all) => all.map((b) => /: (.*)\./.exec(b.getAttribute("aria-label"))?.[1]
  ?? b.textContent));

test("pasted pictures are taken", {}, async ({ page }) => {
  await give(page, "paste", [{ path: picture("park.png"), name: "image.png", type: "image/png" }]);
  await page.waitForSelector("#tray li");
  const body = await ask(page, "Is there a dog?");
  assert.equal(body.messages[0].content[0].type, "image_url");
});

test("several pictures: reordered, removed, sent in order", {}, async ({ page }) => {
  await page.setInputFiles("#files", [picture("beach.png"), picture("breakfast.png"), picture("park.png")]);
  await page.waitForSelector("#tray li:nth-child(3)");
  assert.deepEqual(await names(page), ["beach.png", "breakfast.png", "park.png"]);
  await page.locator("#tray li").nth(2).hover();
  await page.click("[aria-label='Move picture 3 forward']");
  assert.deepEqual(await names(page), ["beach.png", "park.png", "breakfast.png"]);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Move picture 2 forward");
  await page.dragAndDrop("#tray li:nth-child(3)", "#tray li:nth-child(1)");
  assert.deepEqual(await names(page), ["breakfast.png", "beach.png", "park.png"]);
  await page.click("[aria-label='Remove picture 2']");
  assert.deepEqual(await names(page), ["breakfast.png", "park.png"]);
  const body = await ask(page, "What do these have in common?");
  assert.equal(body.messages[0].content.filter((p) => p.type === "image_url").length, 2);
  assert.deepEqual(await texts(page, ".plate .number"), ["1", "2"]);
});

test("a picture is seen large, with its neighbours", {}, async ({ page }) => {
  await ask(page, "Describe these pictures.", [picture("beach.png"), picture("park.png")]);
  await page.locator(".plate .see").first().click();
  assert.match(await page.innerText("#big-caption"), /^beach\.png, 640 × 480, 56 kB, 1 of 2$/);
  await page.keyboard.press("ArrowRight");
  assert.match(await page.innerText("#big-caption"), /^park\.png/);
  await page.click("#big-image");
  assert.equal(await page.locator("#big.actual").count(), 1);
  await page.keyboard.press("Escape");
  assert.equal(await page.isVisible("#big"), false);
});

test("what is no picture is refused in words, and the rest taken", {}, async ({ page }) => {
  const file = (name, data, type = "image/jpeg") => ({ name, mimeType: type, buffer: Buffer.from(data) });
  await page.setInputFiles("#files", [file("notes.jpg", "just text"), file("empty.png", "")]);
  await page.waitForSelector(".toast:nth-child(2)");
  assert.deepEqual(await texts(page, ".toast span"), ["notes.jpg is not a JPEG, PNG, WebP, GIF, BMP or PNM picture.", "empty.png is empty."]);
  await page.setInputFiles("#files", [file("phone.heic", "\0\0\0\x18ftypheic"), file("cut.png", "\x89PNG\r\n\x1a\n")].map((f) =>
    ({ ...f, buffer: Buffer.from(f.buffer.toString("utf8"), "latin1") })));
  await page.waitForSelector(".toast >> text=save it as JPEG first");
  await page.waitForSelector(".toast >> text=could not be decoded");
  assert.equal(await page.locator("#tray li").count(), 0);
  await page.setInputFiles("#files", [sample("alpha.webp"), sample("palette.gif"), sample("rgb.bmp"), sample("raw.ppm"), sample("cmyk.jpg")]);
  await page.waitForSelector("#tray li:nth-child(5)");
});

test("PNM, which a browser cannot show, is sent all the same", {}, async ({ page }) => {
  const body = await ask(page, "Describe this picture.", [sample("raw.ppm")]);
  assert.match(body.messages[0].content[0].image_url.url, /^data:image\/x-portable-anymap;base64,UDY/);
});

test("at most sixteen pictures a question", {}, async ({ page }) => {
  await page.setInputFiles("#files", Array(17).fill(sample("rgb.png")));
  await page.waitForSelector("#tray li:nth-child(16)");
  await page.waitForSelector(".toast >> text=16 pictures at most");
  assert.equal(await page.locator("#tray li").count(), 16);
});

const linked = async ({ page }) => {
  await page.click(".sources [data-source=link]");
  await page.fill("#link-input", "ftp://example.org/a.png");
  await page.click("#link .primary");
  await page.waitForSelector("#link-error:visible");
  await page.fill("#link-input", "https://example.org/cat.jpg");
  await page.click("#link .primary");
  await page.waitForSelector("#tray li >> text=cat.jpg");
  const body = await ask(page, "What is this?");
  assert.equal(body.messages[0].content[0].image_url.url, "https://example.org/cat.jpg");
  assert.match(await page.innerText(".failure"), /could not take this[^]*URL could not be fetched/);
  await page.click(".failure >> text=Change the question");
  assert.equal(await page.inputValue("#question"), "What is this?");
  assert.equal(await page.locator("#tray li").count(), 1);
};
test("a link is handed to the server, and its refusal told", { mock: {}, statuses: [400] }, linked);

test("the camera takes a picture", { permissions: ["camera"] }, async ({ page }) => {
  await page.click(".sources [data-source=camera]");
  await page.waitForSelector("#shutter:enabled");
  await page.click("#shutter");
  await page.waitForSelector("#tray li");
  assert.match((await names(page))[0], /^photo-.*\.jpg$/);
  assert.equal(await page.evaluate(() => document.querySelector("#video").srcObject), null);
});

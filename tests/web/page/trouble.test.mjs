// Errors in words with a way out, the key, and attacks.
import { ask, answer, assert, done, mock, picture, ready, real, test, texts } from "./harness.mjs";

const failing = [
  [{ status: 400, message: "image 1 is truncated" }, /could not take this[^]*image 1 is truncated/, "Change the question"],
  [{ status: 403, message: "no" }, /does not allow this/, "Change the question"],
  [{ status: 408 }, /took too long/, "Try again"],
  [{ status: 413, message: "" }, /more than the server takes[^]*smaller pictures/, "Change the question"],
  [{ status: 415, message: "" }, /kind of picture/, "Change the question"],
  [{ status: 429, retryAfter: 5 }, /busy[^]*Try again in 5 seconds/, "Try again"],
  [{ status: 500, message: "Internal error" }, /made a mistake[^]*Internal error/, "Try again"],
  [{ status: 503 }, /not ready/, "Try again"],
];
for (const [fail, words, way] of failing) {
  test(`${fail.status} is told in words, with a way out`, { mock: { fail: { ...fail, times: 9 } }, statuses: [fail.status] }, async ({ page }) => {
    await ask(page, "Is there a dog?", [picture("park.png")]);
    assert.match(await page.innerText(".failure"), words);
    assert.equal(await page.getAttribute(".failure", "role"), "alert");
    await mock({});
    await page.click(`.failure button >> text=${way}`);
    if (way !== "Try again") {
      assert.equal(await page.inputValue("#question"), "Is there a dog?");
      assert.equal(await page.locator("#tray li").count(), 1);
      await page.press("#question", "Enter");
    }
    await page.waitForFunction(() => !document.querySelector(".failure") && document.querySelector(".answer"));
    await done(page);
    assert.match(await answer(page).locator(".prose").innerText(), /Yes, there is a dog/);
    assert.equal(await page.locator("article.answer").count(), 1);
  });
}

test("a stream that breaks off is told, what was said kept", { mock: { drop: true }, statuses: [0] }, async ({ page }) => {
  await ask(page, "Describe it");
  assert.match(await page.innerText(".failure"), /broke off/);
  assert.match(await answer(page).locator(".prose").innerText(), /^The picture shows a/);
  await mock({});
  await page.click(".failure button >> text=Try again");
  await page.waitForFunction(() => !document.querySelector(".failure"));
  await done(page);
  assert.equal(await page.locator(".answer .note").count(), 0);
});

test("a question whose answer failed goes along with the next", { mock: { fail: { status: 500 } }, statuses: [500] }, async ({ page }) => {
  await ask(page, "Is there a dog?", [picture("park.png")]);
  const { messages } = await ask(page, "Please?");
  assert.deepEqual(messages.map((m) => m.role), ["user"]);
  assert.deepEqual(messages[0].content.map((p) => p.type), ["image_url", "text", "text"]);
});

test("a server that is away is told, and found again", { mock: {}, statuses: [0] }, async ({ page }) => {
  await page.context().setOffline(true);
  await ask(page, "Hello");
  assert.match(await page.innerText(".failure"), /does not answer/);
  await page.waitForSelector(".notice.offline:visible");
  await page.context().setOffline(false);
  await ready(page);
  await page.click(".failure button >> text=Try again");
  await page.waitForFunction(() => !document.querySelector(".failure"));
  await done(page);
});

test("a model that is loading is told, and waited for", { mock: { loading: true }, statuses: [503], unready: true }, async ({ page }) => {
  await page.waitForSelector(".notice.loading:visible");
  assert.match(await page.innerText(".notice"), /The model is loading/);
  await page.setInputFiles("#files", picture("park.png"));
  await page.waitForSelector("#tray li");
  assert.equal(await page.isDisabled("#send"), true);
  await mock({});
  await ready(page);
  assert.equal(await page.isVisible(".notice"), false);
  await ask(page, "Is there a dog?");
});

test("pings in the queue keep the page telling", { mock: { ping: true, wait_ms: 1500 } }, async ({ page }) => {
  await page.fill("#question", "Hello");
  await page.press("#question", "Enter");
  await page.waitForSelector(".waiting >> text=Still at it");
  await done(page);
});

test("a key is asked for, tried, kept for this tab only, and forgotten", { mock: { key: "s3cret" }, statuses: [401], unready: true },
  async ({ page, open }) => {
    await page.waitForSelector(".notice.locked:visible");
    await page.click(".notice >> text=Enter the key");
    await page.fill("#key-input", "wrong");
    await page.press("#key-input", "Enter");
    await page.waitForFunction(() => !document.querySelector("#key").open);
    await page.waitForSelector(".notice.locked:visible");
    await page.click(".notice >> text=Enter the key");
    await page.fill("#key-input", "s3cret");
    await page.press("#key-input", "Enter");
    await ready(page);
    await ask(page, "Is there a dog?");
    const stores = await page.evaluate(() => [JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage }), document.cookie]);
    assert.equal(stores[0].includes("s3cret"), false);
    assert.equal(stores[1].includes("s3cret"), true);
    assert.equal(stores[2], "");
    const other = await open();
    await other.waitForSelector(".notice.locked:visible");
    await page.click("#settings-open");
    await page.click("text=Forget the API key");
    await page.keyboard.press("Escape");
    await ask(page, "And a cat?");
    assert.match(await page.innerText(".failure"), /wants an API key/);
    await page.click(".failure >> text=Enter the key");
    await page.fill("#key-input", "s3cret");
    await page.press("#key-input", "Enter");
    await page.waitForFunction(() => !document.querySelector(".failure"));
    await done(page);
  });

const ATTACK = [
  "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 2'>", "<svg onload='window.hit = 3'></svg>",
  "<iframe srcdoc='<script>parent.hit = 4</script>'></iframe>", "<style>body { display: none }</style>",
  "<form action='https://example.org'><input name=a></form>", "<a href='javascript:window.hit = 5'>one</a>",
  "[two](javascript:window.hit=6)", "[three](JaVaScRiPt&colon;window.hit=7)", "[four](data:text/html,<script>window.hit=8</script>)",
  "![remote](https://example.org/pixel.png)", "<img src='https://example.org/pixel2.png'>", "<link rel=stylesheet href=https://example.org/a.css>",
  "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.hit=9&gt;'>",
  "<p id=question class=send style='position:fixed'>clobber</p>", "<base href='https://example.org/'>",
  "[fine](https://example.org/page)",
].join("\n\n");
const harmless = async (page) => {
  const found = await page.evaluate(() => ({
    hit: window.hit, links: [...document.querySelectorAll(".prose a")].map((a) => [a.getAttribute("href"), a.rel, a.target]),
    bad: document.querySelectorAll(".prose :is(script, img, svg:not(.glyph), iframe, style, form, input, link, base, math, object, embed)").length,
    attributes: [...document.querySelectorAll(".prose *:not(button, svg, path, pre, .code, .table)")].flatMap((e) => e.getAttributeNames())
      .filter((n) => !["href", "rel", "target", "title", "start", "align"].includes(n)),
    questions: document.querySelectorAll("#question").length,
  }));
  assert.equal(found.hit, undefined);
  assert.equal(found.bad, 0);
  assert.deepEqual(found.attributes, []);
  assert.equal(found.questions, 1);
  return found.links;
};

test("an answer full of attacks is only words", { mock: { text: ATTACK } }, async ({ page }) => {
  await ask(page, "Attack!");
  const links = (await harmless(page)).filter(([href]) => href !== null);
  assert.deepEqual(links, [["https://example.org/page", "noopener noreferrer nofollow", "_blank"]]);
});

test("attacks in an imported file are only words", {}, async ({ page }) => {
  const html = "<img src=x onerror='window.hit = 1'>";
  const value = { format: "image-chat conversations", version: 1, conversations: [{ id: "00112233aabb", title: html, created: 1, updated: 2,
    __proto__: null, messages: [{ role: "user", text: `${html}<script>window.hit = 2</script>`, pictures: [{ name: html, link: "https://example.org/a.png?<b>" },
      { name: html, data: "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7", width: 1, height: 1 }] },
    { role: "assistant", text: ATTACK, status: html, finish: html, info: { model: html, images: [{ width: 1, height: 1, tiles: 1, tokens: 1 }] } }] }] };
  await page.setInputFiles("#import-file", { name: `${html}.json`, mimeType: "application/json", buffer: Buffer.from(JSON.stringify(value)) });
  await page.waitForSelector(".list .open");
  assert.deepEqual(await texts(page, ".list .title"), [html]);
  await page.fill("#search", "onerror");
  await page.click(".list .open");
  await page.waitForSelector("article.answer");
  assert.equal(await page.innerText(".asked h2"), `${html}<script>window.hit = 2</script>`);
  await page.click(".facts summary");
  await harmless(page);
});

test("attacks in names, errors and the model's name are only words", { mock: { fail: { status: 400, message: "<img src=x onerror='window.hit = 1'>" } },
  statuses: [400] }, async ({ page }) => {
  const file = { name: "<img src=x onerror='window.hit = 2'>.png", mimeType: "image/png", buffer: Buffer.from("none") };
  await page.setInputFiles("#files", file);
  await page.waitForSelector(".toast");
  await ask(page, "Hello");
  assert.match(await page.innerText(".failure"), /<img src=x/);
  assert.equal(await page.evaluate(() => window.hit), undefined);
});

test("the page may load nothing from elsewhere", {}, async ({ page, url }) => {
  const response = await page.request.get(url);
  const policy = response.headers()["content-security-policy"] ?? "";
  const rules = Object.fromEntries(policy.split(";").map((rule) => rule.trim().split(/ (.*)/)));
  for (const kind of ["script-src", "style-src", "connect-src", "font-src", "frame-src"]) {
    assert.equal(rules[kind] ?? rules["default-src"], "'self'", policy);
  }
  assert.equal(rules["img-src"], "'self' data: blob:");
  const html = await response.text();
  assert.doesNotMatch(html, /<script(?![^>]*src=)|\son\w+=|style=/);
  for (const path of ["app.js", "style.css", "vendor/marked.js", "vendor/purify.js", "icon.svg"]) {
    const got = await page.request.get(url + path);
    assert.equal(got.status(), 200, path);
    assert.match(got.headers()["content-type"], path.endsWith(".js") ? /javascript/ : path.endsWith(".css") ? /css/ : /svg/);
  }
  assert.equal(real || (await page.request.get(`${url}..%2f..%2f..%2fREADME.md`)).status() === 404, true);
});

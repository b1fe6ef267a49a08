// The screenshots of assets/screenshots, and with a folder named every state of the page, to be looked at:
//   IMAGE_CHAT=build/bin/image-chat LV_NODE_MODULES=$PWD/build/tests/web/node_modules node tests/web/page/screenshots.mjs [FOLDER]
import { mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { ENDLESS, start } from "./server.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "../../..");
const { chromium } = createRequire(join(process.env.LV_NODE_MODULES, "x.cjs"))("playwright-core");
const pictures = (...names) => names.map((name) => join(root, "assets/pictures", name));
const CHAT = "**/v1/chat/completions";
const wide = { width: 1280, height: 800 };
const narrow = { width: 390, height: 844 };

const server = await start();
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu"] });

async function open(viewport, colorScheme) {
  const context = await browser.newContext({ viewport, colorScheme, hasTouch: viewport === narrow, isMobile: viewport === narrow });
  const page = await context.newPage();
  await page.goto(server.url);
  await page.waitForSelector(".model[data-state=ready]", { state: "attached" });
  return page;
}
const ended = (page, n) => page.waitForFunction((want) =>
  document.querySelectorAll(".answer[aria-busy=false]").length === want, n);
async function begin(page, text, names = []) {
  if (names.length) await page.setInputFiles("#files", pictures(...names));
  await page.waitForFunction((n) => document.querySelectorAll("#tray li").length === n, names.length);
  await page.fill("#question", text);
  await page.press("#question", "Enter");
}
const shoot = async (page, path) => {
  await page.waitForTimeout(1200); // what moves comes to rest
  await page.screenshot({ path });
};

async function ours() {
  const page = await open(wide, "light");
  await begin(page, "How many eggs are there?", ["breakfast.png"]);
  await ended(page, 1);
  await page.click("#new");
  await begin(page, "Is there a dog?", ["park.png"]);
  await ended(page, 1);
  await page.click("#new");
  await begin(page, "Describe this picture.", ["beach.png"]);
  await ended(page, 1);
  await begin(page, "Is there a crab?");
  await ended(page, 2);
  await page.locator(".facts summary").last().click();
  await shoot(page, join(root, "assets/screenshots/desktop.png"));
  const phone = await open(narrow, "dark");
  await begin(phone, "How many eggs are there?", ["breakfast.png"]);
  await ended(phone, 1);
  await shoot(phone, join(root, "assets/screenshots/phone.png"));
}

async function states(folder, viewport, colorScheme) {
  const page = await open(viewport, colorScheme);
  const take = (name) => shoot(page, join(folder, `${viewport === narrow ? "narrow" : "wide"}-${colorScheme}-${name}.png`));
  const alter = (change) => page.route(CHAT, (route) =>
    route.continue({ postData: JSON.stringify(change(route.request().postDataJSON())) }));
  await take("empty");
  await page.setInputFiles("#files", pictures("beach.png", "park.png"));
  await take("attached");
  await page.reload();
  await begin(page, "Describe this picture.", ["beach.png"]);
  await ended(page, 1);
  await page.locator(".facts summary").last().click();
  await take("answered");
  await alter((body) => ({ ...body, ...ENDLESS }));
  await begin(page, "What do these have in common?", ["park.png", "breakfast.png"]);
  await take("writing");
  await page.keyboard.press("Escape");
  await take("stopped");
  await page.unroute(CHAT);
  await alter((body) => ({ ...body, temperature: 3 }));
  await begin(page, "And here?", ["beach.png"]);
  await take("error");
  await page.click("#settings-open");
  await take("settings");
  await page.keyboard.press("Escape");
  if (viewport === narrow) await page.click("#sidebar-open");
  await take("conversations");
}

try {
  if (process.argv[2]) {
    await mkdir(process.argv[2], { recursive: true });
    for (const viewport of [wide, narrow]) for (const scheme of ["light", "dark"]) await states(process.argv[2], viewport, scheme);
  } else await ours();
} finally {
  await browser.close();
  await server.stop();
}

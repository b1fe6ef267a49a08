// Serves the page and imitates image-chat's API, so that the page can be looked at and tested without a model:
//   node tests/web/mock_server.mjs [PORT]
// POST /mock sets what comes next: {loading, key, fail: {status, message, retryAfter, times}, wait_ms, word_ms, text,
// ping, drop, limits}. GET /mock gives the last request's body. Answers are made up from the question.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const WEB = join(dirname(fileURLToPath(import.meta.url)), "../../apps/image_chat/web");
const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
  ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".png": "image/png", ".md": "text/markdown; charset=utf-8" };
const HEADERS = {
  "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
    + "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
};
const STANDARD = { loading: false, key: "", fail: null, wait_ms: 30, word_ms: 4, text: null, ping: false, drop: false,
  limits: { max_images: 16, max_image_bytes: 20 << 20, max_pixels: 64 << 20, url_fetch: true } };

const ANSWERS = [
  [/eggs/i, "There are two eggs."],
  [/dog/i, "Yes, there is a dog. It sits in front of the tree, between the house and the bicycle."],
  [/beach/i, "A crab, a palm tree, a sailboat and a sun are at the beach."],
  [/common|differ|these/i, "All three are drawn in the same soft style, with plain backgrounds and clear shapes.\n\n"
    + "1. The first shows a **beach** with a crab and a palm tree.\n2. The second is a **breakfast** on yellow.\n"
    + "3. The third is a **park** with a house, a dog and a bicycle."],
  [/code|json/i, "Here it is as JSON:\n\n```json\n{\n  \"caption\": \"a beach\",\n  \"animals\": [\"crab\"]\n}\n```\n\n"
    + "The field `animals` lists what is *certain*."],
  [/^/, "The picture shows a crab, a palm tree, a sailboat and a sun at the beach. The crab is at the lower left, "
    + "on the sand; the sailboat floats on deep blue water to the right of the palm tree."],
];

export function serve(port = 0) {
  let mock = { ...STANDARD };
  let last = null;
  const error = (response, status, message, code = null, headers = {}) => {
    response.writeHead(status, { ...HEADERS, "Content-Type": "application/json", ...headers });
    response.end(JSON.stringify({ error: { message, type: status < 500 ? "invalid_request_error" : "server_error", param: null, code } }));
  };
  const json = (response, value) => {
    response.writeHead(200, { ...HEADERS, "Content-Type": "application/json" });
    response.end(JSON.stringify(value));
  };
  const read = async (request) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    return Buffer.concat(parts).toString();
  };
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  async function chat(request, response) {
    last = JSON.parse(await read(request));
    if (mock.fail) {
      const { status, message, code, retryAfter, times = 1 } = mock.fail;
      mock.fail = times > 1 ? { ...mock.fail, times: times - 1 } : null;
      return error(response, status, message ?? "This was asked for.", code, retryAfter ? { "Retry-After": String(retryAfter) } : {});
    }
    const parts = last.messages.flatMap((m) => (Array.isArray(m.content) ? m.content : []));
    const pictures = parts.filter((p) => p.type === "image_url");
    if (pictures.some((p) => p.image_url.url.startsWith("http"))) {
      return error(response, 400, "A picture's URL could not be fetched.", "image_fetch_failed");
    }
    const asked = last.messages.at(-1).content;
    const question = typeof asked === "string" ? asked : asked.findLast((p) => p.type === "text")?.text ?? "";
    const text = mock.text ?? ANSWERS.find(([pattern]) => pattern.test(question))[1];
    const words = text.match(/\s*\S+|\s+$/g) ?? [];
    response.writeHead(200, { ...HEADERS, "Content-Type": "text/event-stream" });
    let gone = false;
    response.on("close", () => { gone = true; });
    const send = (chunk) => response.write(`data: ${JSON.stringify({ id: "chatcmpl-1", object: "chat.completion.chunk",
      created: 1, model: "demo-model", ...chunk })}\n\n`);
    send({ choices: [{ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null }] });
    if (mock.ping) response.write(": waiting\n\n");
    await pause(mock.wait_ms);
    for (const [i, word] of words.entries()) {
      if (gone) return;
      if (mock.drop && i === 4) return setTimeout(() => response.destroy(), 500);
      send({ choices: [{ index: 0, delta: { content: word }, finish_reason: null }] });
      await pause(mock.word_ms);
    }
    const length = words.length > last.max_tokens;
    const images = pictures.map(() => ({ width: 640, height: 480, tiles: 1, tile_size: 208, tokens: 169 }));
    send({ choices: [{ index: 0, delta: {}, finish_reason: length ? "length" : "stop" }], images, usage: null });
    send({ choices: [], usage: { prompt_tokens: 38 + 169 * images.length, completion_tokens: words.length,
      total_tokens: 38 + 169 * images.length + words.length, prompt_tokens_details: { cached_tokens: 3, image_tokens: 169 * images.length } }, images,
    timings: { queue_ms: 1.2, encode_ms: 41.5 * images.length, prefill_ms: 63.8, decode_ms: 7.4 * words.length, first_token_ms: 112.4 } });
    response.end("data: [DONE]\n\n");
  }

  async function file(path, response) {
    const name = normalize(path === "/" ? "index.html" : decodeURIComponent(path.slice(1)));
    if (name.startsWith("..")) return error(response, 404, "Not found.");
    const data = await readFile(join(WEB, name)).catch(() => null);
    if (!data) return error(response, 404, "Not found.");
    response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[extname(name)] ?? "application/octet-stream" });
    response.end(data);
  }

  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, "http://host");
    if (pathname === "/mock") {
      if (request.method === "GET") return json(response, last);
      mock = { ...STANDARD, ...JSON.parse(await read(request)) };
      return json(response, mock);
    }
    if (pathname === "/health") return mock.loading ? error(response, 503, "The model is loading.") : json(response, { status: "ok" });
    const open = !pathname.startsWith("/v1/") && pathname !== "/openapi.json";
    if (!open && mock.key && request.headers.authorization !== `Bearer ${mock.key}`) return error(response, 401, "Wrong API key.");
    if (pathname === "/openapi.json") return json(response, { openapi: "3.1.0", "x-limits": mock.limits });
    if (pathname.startsWith("/v1/")) {
      if (pathname === "/v1/models") return json(response, { object: "list", data: [{ id: "demo-model", object: "model", max_model_len: 2048, device: "cpu" }] });
      if (pathname === "/v1/chat/completions") return chat(request, response);
      return error(response, 404, "Not found.");
    }
    return file(pathname, response);
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server)));
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const server = await serve(Number(process.argv[2] ?? 8093));
  console.log(`http://127.0.0.1:${server.address().port}/`);
}

// The server's API: OpenAI's shapes, read with fetch.

// Something that went wrong, as the server or the network said it.
export class ApiError extends Error {
  constructor(status, message, more = {}) {
    super(message);
    Object.assign(this, { status, code: null, param: null, retryAfter: null }, more);
  }
}

// In the tab only: closing it forgets the key.
export const key = {
  get: () => sessionStorage.getItem("image-chat.key") ?? "",
  set: (value) => sessionStorage.setItem("image-chat.key", value),
  forget: () => sessionStorage.removeItem("image-chat.key"),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "");
  }
  if (response.ok) return response;
  const body = await response.text().catch(() => "");
  let said = {};
  try {
    said = JSON.parse(body).error ?? {};
  } catch {
    // Not from image-chat but from something in between: the status says enough.
  }
  const after = Number(response.headers.get("Retry-After"));
  throw new ApiError(response.status, typeof said.message === "string" ? said.message : "", {
    code: said.code ?? null, param: said.param ?? null, retryAfter: after > 0 ? Math.ceil(after) : null,
  });
}

// "ready" with what the server says of its model and limits, "loading", "locked" (a key is wanted) or "offline".
export async function look() {
  const json = async (path) => (await request(path)).json();
  try {
    await request("/health");
    const [models, about] = await Promise.all([json("/v1/models"), json("/openapi.json")]);
    const model = models.data?.[0] ?? {};
    return { state: "ready", model: String(model.id ?? "model"), device: String(model.device ?? ""),
      session: Number(model.max_model_len) || 0, limits: about["x-limits"] ?? {} };
  } catch (error) {
    if (error.status === 503) return { state: "loading" };
    return { state: error.status === 401 ? "locked" : "offline" };
  }
}

// What is kept of a last chunk's numbers.
export const NUMBERS = {
  usage: ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens"],
  timings: ["queue_ms", "encode_ms", "prefill_ms", "decode_ms", "first_token_ms"],
  image: ["width", "height", "tiles", "tile_size", "tokens"],
};
const pick = (from, names) =>
  Object.fromEntries(names.filter((n) => Number.isFinite(from[n])).map((n) => [n, from[n]]));

// The events of a text/event-stream: yields {data} and {ping}. Lines may end anywhere in a chunk.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith(":")) yield { ping: true };
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield { data: data.join("\n") };
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Streams an answer: yields {ping}, {text}, {finish} and {info: {usage, timings, images}}, of which
// each may come apart. Throws an ApiError, or AbortError once signal fires.
export async function* chat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  let finished = false;
  try {
    for await (const event of events(response.body)) {
      if (event.ping) {
        yield event;
        continue;
      }
      if (event.data === "[DONE]") return;
      let chunk;
      try {
        chunk = JSON.parse(event.data);
      } catch {
        throw new ApiError(-1, "A part of the answer could not be read.");
      }
      if (chunk.error) throw new ApiError(-1, String(chunk.error.message ?? ""), { code: chunk.error.code ?? null });
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      const info = {};
      if (chunk.usage) info.usage = pick({ ...chunk.usage, ...chunk.usage.prompt_tokens_details }, NUMBERS.usage);
      if (chunk.timings) info.timings = pick(chunk.timings, NUMBERS.timings);
      if (chunk.images) info.images = chunk.images.map((image) => pick(image, NUMBERS.image));
      if (Object.keys(info).length) yield { info };
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(-1, ""); // the connection broke
  }
  if (!finished) throw new ApiError(-1, "");
}

// An error in words: what happened, what the server said, and the ways out ("retry", "key", "edit").
export function words(error) {
  const said = error instanceof ApiError ? error.message : String(error?.message ?? error);
  const of = (title, ways, detail = said) => ({ title, detail, ways });
  switch (error.status) {
  case 0: return of("The server does not answer", ["retry"],
    "Is image-chat still running? What you asked is kept here.");
  case -1: return of("The answer broke off", ["retry"], said || "The connection was lost on the way.");
  case 400: return of("The server could not take this", ["edit", "retry"]);
  case 401: return of("The server wants an API key", ["key"], "It is the one that image-chat was started with.");
  case 403: return of("The server does not allow this", ["edit", "retry"]);
  case 408: return of("Sending took too long", ["retry"]);
  case 413: return of("That is more than the server takes", ["edit"],
    said || "Use fewer or smaller pictures, or a shorter conversation.");
  case 415: return of("The server does not read this kind of picture", ["edit"]);
  case 429: return of("The server is busy", ["retry"], error.retryAfter
    ? `All places are taken. Try again in ${error.retryAfter === 1 ? "a second" : `${error.retryAfter} seconds`}.`
    : said || "All places are taken. Try again in a moment.");
  case 503: return of("The server is not ready", ["retry"], said || "It is loading the model, or stopping.");
  default: return of(error.status >= 500 ? "The server made a mistake" : "This did not work", ["retry", "edit"],
    said || (error.status ? `It answered with status ${error.status}.` : ""));
  }
}

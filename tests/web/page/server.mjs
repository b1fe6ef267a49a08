// A real image-chat ($IMAGE_CHAT) with the demo model, of a test's own.
import { spawn } from "node:child_process";
import { setTimeout as pause } from "node:timers/promises";

const SECONDS = 120;

// until(f): what f gives as soon as that is true.
export async function until(condition, what) {
  for (const end = Date.now() + SECONDS * 1000; Date.now() < end;) {
    const found = await condition();
    if (found) return found;
    await pause(20);
  }
  throw new Error(`not seen within ${SECONDS} s: ${what}`);
}

export async function start(args = [], port = 0) {
  const { LLAVA_MODEL, IMAGE_CHAT_API_KEY, ...environment } = process.env;
  const child = spawn(process.env.IMAGE_CHAT, ["--server-port", String(port), "-q", ...args],
    { stdio: ["ignore", "ignore", "pipe"], env: { ...environment, OMP_WAIT_POLICY: "passive" } });
  let log = "";
  child.stderr.on("data", (data) => { log += data; });
  const ended = new Promise((resolve) => { child.on("exit", (code, signal) => resolve(signal ?? code)); });
  const address = await until(() => /listening on (http:\S+)/.exec(log) ?? (child.exitCode !== null && [null, null]), "an address");
  if (!address[1]) throw new Error(`image-chat ended with ${child.exitCode}: ${log}`);
  const url = `${address[1]}/`;
  await until(async () => (await fetch(`${url}health`)).ok, "a model");
  const key = args.includes("--api-key") ? args[args.indexOf("--api-key") + 1] : "";
  const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
  return {
    url, port: Number(new URL(url).port), log: () => log, kill: (signal) => child.kill(signal), ended,
    post: (body, signal) => fetch(`${url}v1/chat/completions`, { method: "POST", headers, signal, body: JSON.stringify(body) }),
    async metric(name) {
      const text = await (await fetch(`${url}metrics`, { headers })).text();
      return Number(new RegExp(`^image_chat_${name} (\\S+)$`, "m").exec(text)?.[1]);
    },
    async stop() {
      child.kill("SIGTERM");
      const status = await ended;
      if (status !== 0) throw new Error(`image-chat ended with ${status}: ${log}`);
    },
  };
}

// An answer of random words without an end in sight.
export const ENDLESS = { temperature: 1.2, max_tokens: 2000,
  response_format: { type: "json_schema", json_schema: { schema: { type: "string", minLength: 100000 } } } };

// /openapi.json is valid, and the server's answers are what it says: node openapi.mjs URL KEY PICTURES
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { Validator } from "@seriousme/openapi-schema-validator";
import Ajv from "ajv/dist/2020.js";

const [url, key, pictures] = process.argv.slice(2);
const headers = { Authorization: `Bearer ${key}`, "Content-Type": "application/json" };
const SCHEMAS = "#/components/schemas/";
const beach = `data:image/png;base64,${(await readFile(`${pictures}/beach.png`)).toString("base64")}`;
const api = await (await fetch(`${url}/openapi.json`, { headers })).json();

const { valid, errors } = await new Validator().validate(structuredClone(api));
assert.ok(valid, JSON.stringify(errors, null, 1));
console.log("ok valid");

const ajv = new Ajv.default({ strict: false, allErrors: true, formats: { int64: true } });
ajv.addSchema(api, "api");
// The schemas of answers allow further fields, for clients' sake; the server sends none that is not listed.
const met = new Set();
function check(value, name) {
  const is = ajv.getSchema(`api${SCHEMAS}${name}`);
  assert.ok(is(value), `${name}: ${JSON.stringify(is.errors)}\n${JSON.stringify(value).slice(0, 500)}`);
  for (const field of Object.keys(value)) assert.ok(api.components.schemas[name].properties[field], `${name} does not list ${field}`);
  met.add(name);
}

async function ask(path, body, status, schema) {
  const operation = api.paths[path][body ? "post" : "get"];
  const response = await fetch(url + path.replace("{model}", "demo-model"), { method: body ? "POST" : "GET", headers,
    body: body && JSON.stringify(body) });
  const text = await response.text();
  assert.equal(response.status, status, `${path}: ${text}`);
  const type = response.headers.get("content-type").split(";")[0];
  const said = operation.responses[status].content[type].schema;
  assert.equal(said.$ref, schema && SCHEMAS + schema);
  if (body && path.startsWith("/v1/chat")) {
    const is = ajv.getSchema(`api${SCHEMAS}ChatCompletionRequest`)(body);
    assert.equal(is, status !== 400, `a request of status ${status}, and by the schema it is ${is ? "right" : "wrong"}: ${JSON.stringify(body).slice(0, 300)}`);
  }
  if (type === "text/event-stream") {
    const events = text.split("\n\n").filter((event) => event.startsWith("data: {"));
    assert.ok(events.length > 2);
    for (const event of events) check(JSON.parse(event.slice(6)), schema);
  } else if (type === "application/json" && schema) check(JSON.parse(text), schema);
}

const chat = (more) => ({ messages: [{ role: "user", content: [{ type: "text", text: "Describe this image." },
  { type: "image_url", image_url: { url: beach, detail: "auto" } }] }], max_tokens: 4, ...more });
await ask("/v1/models", null, 200, "ModelList");
await ask("/v1/models/{model}", null, 200, "Model");
await ask("/health", null, 200, "Health");
await ask("/metrics", null, 200);
await ask("/openapi.json", null, 200);
await ask("/v1/tokenize", { prompt: "A crab.", return_token_strs: true }, 200, "Tokens");
const many = { n: 2, seed: 1, logprobs: true, top_logprobs: 2, stop: ["zebra"], temperature: 1, user: "me" };
const card = { type: "json_schema", json_schema: { name: "card", strict: true, schema: { type: "object", properties: {} } } };
for (const more of [{}, many, { response_format: card }, { stop: null, temperature: null, model: "demo-model" }]) {
  await ask("/v1/chat/completions", chat(more), 200, "ChatCompletion");
}
for (const more of [{ stream: true }, { ...many, stream: true, stream_options: { include_usage: true } }]) {
  const operation = api.paths["/v1/chat/completions"].post.responses[200].content;
  assert.deepEqual(Object.keys(operation), ["application/json", "text/event-stream"]);
  await ask("/v1/chat/completions", chat(more), 200, "ChatCompletionChunk");
}
for (const more of [{ temperature: 3 }, { nonsense: 1 }, { n: 0 }, { messages: [] }, { stop: [""] }, { max_tokens: "1" },
  { response_format: { type: "xml" } }, { messages: [{ role: "tool", content: "x" }] }, { top_logprobs: 21, logprobs: true }]) {
  await ask("/v1/chat/completions", chat(more), 400, "Error");
}
await ask("/v1/chat/completions", chat({ model: "another" }), 404, "Error");
console.log("ok answers");

for (const name of Object.keys(api.components.schemas)) {
  const used = JSON.stringify(api).includes(`"${SCHEMAS}${name}"`);
  assert.ok(used, `${name} is used nowhere`);
}
for (const name of ["ChatCompletion", "ChatCompletionChunk", "Error", "Health", "Model", "ModelList", "Tokens"]) assert.ok(met.has(name), name);
console.log("ok schemas");

// The official openai client against a running image-chat: node client.mjs URL KEY PICTURES
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import OpenAI from "openai";

const [url, key, pictures] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const beach = `data:image/png;base64,${(await readFile(`${pictures}/beach.png`)).toString("base64")}`;
const want = "The picture shows a crab, a palm tree, a sailboat and a sun at the beach.";
const model = (await client.models.list()).data[0].id;

const ask = (text, image) => ({
  model,
  temperature: 0,
  messages: [{
    role: "user",
    content: image ? [{ type: "text", text }, { type: "image_url", image_url: { url: image } }] : text,
  }],
});

async function health() {
  const text = await (await fetch(`${url}/metrics`, { headers: { Authorization: `Bearer ${key}` } })).text();
  return Number(text.match(/^image_chat_chat_requests (\d+)$/m)[1]);
}

async function idle() {
  for (let i = 0; i < 500 && await health() > 0; i++) await new Promise((done) => setTimeout(done, 20));
  assert.equal(await health(), 0, "a cancelled request still holds its slot");
}

const tests = {
  async models() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve("another"), OpenAI.NotFoundError);
  },

  async chat() {
    const answer = await client.chat.completions.create(ask("Describe this image.", beach));
    assert.equal(answer.choices[0].message.content, want);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.ok(answer._request_id);
  },

  async stream() {
    const stream = await client.chat.completions.create({
      ...ask("Describe this image.", beach), stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null, finish = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, want);
    assert.equal(finish, "stop");
    assert.equal(usage.prompt_tokens_details.image_tokens, 169);
  },

  async streamHelper() {
    const runner = client.chat.completions.stream({ ...ask("Describe this image.", beach) });
    const words = [];
    runner.on("content", (delta) => words.push(delta));
    const whole = await runner.finalChatCompletion();
    assert.equal(whole.choices[0].message.content, want);
    assert.equal(words.join(""), want);
  },

  async choicesAndLogprobs() {
    const answer = await client.chat.completions.create({
      ...ask("Describe this image.", beach), n: 2, logprobs: true, top_logprobs: 2, max_tokens: 3, stop: ["zebra"],
    });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
    assert.equal(answer.choices[0].logprobs.content.length, 3);
    assert.equal(answer.choices[0].finish_reason, "length");
  },

  async json() {
    const schema = { type: "object", properties: { crab: { type: "boolean" } }, required: ["crab"], additionalProperties: false };
    const answer = await client.chat.completions.parse({
      ...ask("Is there a crab? Answer in JSON.", beach),
      response_format: { type: "json_schema", json_schema: { name: "crab", strict: true, schema } },
    });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).crab, "boolean");
  },

  async abort() {
    const long = {
      ...ask("Tell me all."), temperature: 2, seed: 1, max_tokens: 1500,
      response_format: { type: "json_schema", json_schema: { name: "x", schema: { type: "string", minLength: 6000 } } },
    };
    const stream = await client.chat.completions.create({ ...long, stream: true });
    let n = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0].delta.content && ++n === 5) stream.controller.abort();
    }
    assert.ok(n < 500, `${n} words came after the abort`);
    await idle();
    const control = new AbortController();
    setTimeout(() => control.abort(), 100);
    await assert.rejects(client.chat.completions.create(long, { signal: control.signal }), OpenAI.APIUserAbortError);
    await idle();
    await assert.rejects(client.chat.completions.create(long, { timeout: 100 }), OpenAI.APIConnectionTimeoutError);
    await idle();
  },

  async errors() {
    const create = (fields) => client.chat.completions.create({ ...ask("Hi"), ...fields });
    await assert.rejects(create({ temperature: 3 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.status, error.code, error.param, error.type],
        [400, "invalid_value", "temperature", "invalid_request_error"]);
      return true;
    });
    await assert.rejects(create({ nonsense: 1 }), { status: 400, code: "unknown_parameter", param: "nonsense" });
    await assert.rejects(create({ model: "gpt-4o" }), OpenAI.NotFoundError);
    await assert.rejects(create(ask("?", "data:image/png;base64,AAAA")), { status: 400, code: "invalid_image" });
    await assert.rejects(create(ask("?", "file:///etc/passwd")), { status: 400, code: "invalid_image_url" });
    await assert.rejects(create({ ...ask("?", "data:image/png;base64,AAAA"), stream: true }), { status: 400 });
    await assert.rejects(create(ask("crab ".repeat(5000))), { status: 413, code: "context_length_exceeded" });
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.chat.completions.create(ask("Hi")), OpenAI.AuthenticationError);
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}

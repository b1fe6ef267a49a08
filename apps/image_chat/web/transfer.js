// Conversations as one JSON file, pictures in it as base64; and back, believing nothing.
import { NUMBERS } from "./api.js";
import { sniff } from "./pictures.js";
import { newId } from "./store.js";

const FORMAT = "image-chat conversations";
const LIMITS = { file: 256e6, conversations: 10000, messages: 10000, pictures: 64, text: 1e6, title: 300 };

export async function toBase64(blob) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

// sets: [{conversation, pictures: [picture]}]
export async function write(sets) {
  const conversations = [];
  for (const { conversation, pictures } of sets) {
    const packed = new Map();
    for (const { id, name, type, width, height, blob, link } of pictures) {
      packed.set(id, link ? { name, link } : { name, type, width, height, data: await toBase64(blob) });
    }
    const { id, title, created, updated } = conversation;
    const messages = conversation.messages.map(({ role, text, status, finish, info, pictures: shown }) =>
      role === "user" ? { role, text, pictures: shown.map((p) => packed.get(p)).filter(Boolean) }
        : { role, text, status, finish, info });
    conversations.push({ id, title, created, updated, messages });
  }
  return new Blob([JSON.stringify({ format: FORMAT, version: 1, conversations })], { type: "application/json" });
}

function need(right, where, what) {
  if (!right) throw new Error(`${where}: ${what}`);
}
const string = (value, most, where) => {
  need(typeof value === "string", where, "a text was expected");
  need(value.length <= most, where, `longer than ${most} characters`);
  return value;
};
const number = (value, where) => {
  need(Number.isFinite(value) && value >= 0, where, "a number from 0 was expected");
  return value;
};
const array = (value, most, where) => {
  need(Array.isArray(value), where, "a list was expected");
  need(value.length <= most, where, `more than ${most} of them`);
  return value;
};
const object = (value, where) => {
  need(value !== null && typeof value === "object" && !Array.isArray(value), where, "an object was expected");
  return value;
};

function picture(value, conversation, where) {
  object(value, where);
  const common = { id: newId(), conversation, name: string(value.name, LIMITS.title, `${where}.name`) };
  if (value.link !== undefined) {
    const link = string(value.link, 4096, `${where}.link`);
    need(/^https?:\/\//i.test(link) && URL.canParse(link), `${where}.link`, "an http or https address was expected");
    return { ...common, link };
  }
  let raw;
  try {
    raw = Uint8Array.from(atob(string(value.data, LIMITS.file, `${where}.data`)), (c) => c.charCodeAt(0));
  } catch (error) {
    throw error instanceof DOMException ? new Error(`${where}.data: not base64`) : error;
  }
  const { type, wrong } = sniff(raw);
  need(type, `${where}.data`, wrong);
  const side = (n, name) => (n === null || n === undefined ? null : number(n, `${where}.${name}`));
  return { ...common, type, width: side(value.width, "width"), height: side(value.height, "height"),
    blob: new Blob([raw], { type }) };
}

// Numbers only, of names that are known: what view.js shows of an answer.
function info(value, where) {
  if (value === null || value === undefined) return null;
  object(value, where);
  const numbers = (from, names, at) => from === null || from === undefined ? null
    : Object.fromEntries(names.filter((n) => object(from, at)[n] !== undefined && from[n] !== null)
      .map((n) => [n, number(from[n], `${at}.${n}`)]));
  return {
    model: value.model === undefined ? "" : string(value.model, LIMITS.title, `${where}.model`),
    usage: numbers(value.usage, NUMBERS.usage, `${where}.usage`),
    timings: numbers(value.timings, NUMBERS.timings, `${where}.timings`),
    images: value.images ? array(value.images, LIMITS.pictures, `${where}.images`).map((image, i) =>
      numbers(image, NUMBERS.image, `${where}.images[${i}]`)) : null,
  };
}

function message(value, id, shown, where) {
  object(value, where);
  const text = string(value.text, LIMITS.text, `${where}.text`);
  if (value.role === "user") {
    const pictures = array(value.pictures, LIMITS.pictures, `${where}.pictures`)
      .map((p, i) => picture(p, id, `${where}.pictures[${i}]`));
    shown.push(...pictures);
    return { id: newId(), role: "user", text, pictures: pictures.map((p) => p.id) };
  }
  need(value.role === "assistant", `${where}.role`, "expected \"user\" or \"assistant\"");
  return { id: newId(), role: "assistant", text, status: value.status === "done" ? "done" : "stopped",
    finish: value.finish === "length" ? "length" : "stop", info: info(value.info, `${where}.info`), error: null };
}

// All of a file or nothing: throws an Error that says what is wrong and where. Gives sets as write() takes.
export async function read(file) {
  need(file.size <= LIMITS.file, file.name, "larger than 256 MB");
  let root;
  try {
    root = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name}: not a JSON file`);
  }
  need(object(root, "file").format === FORMAT, "file", "not exported by image-chat");
  need(root.version === 1, "file", "made by a newer image-chat");
  return array(root.conversations, LIMITS.conversations, "conversations").map((value, i) => {
    const where = `conversations[${i}]`;
    object(value, where);
    const id = string(value.id, 64, `${where}.id`);
    need(/^[0-9a-f]{8,64}$/.test(id), `${where}.id`, "not an id");
    const pictures = [];
    const messages = array(value.messages, LIMITS.messages, `${where}.messages`)
      .map((m, n) => message(m, id, pictures, `${where}.messages[${n}]`));
    const conversation = { id, title: string(value.title, LIMITS.title, `${where}.title`), titled: true,
      created: number(value.created, `${where}.created`), updated: number(value.updated, `${where}.updated`),
      cover: null, messages };
    return { conversation, pictures };
  });
}

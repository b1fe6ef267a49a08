// Pictures on their way in: which bytes are taken, where they come from, how large they are.
import { $, ask, bytes, plural } from "./dom.js";
import { newId } from "./store.js";

// What the server takes in one question: its own words once it has said them.
export const limits = { pictures: 16, bytes: 20 << 20, pixels: Infinity, links: true };
export function setLimits({ max_images: most, max_image_bytes: size, max_pixels: pixels, url_fetch: links }) {
  Object.assign(limits, { pictures: most ?? limits.pictures, bytes: size ?? limits.bytes,
    pixels: pixels ?? limits.pixels, links: links ?? limits.links });
}

const tag = (data, at, text) => [...text].every((c, i) => data[at + i] === c.charCodeAt(0));

// By the first bytes, whatever the name says: {type} or {wrong}.
export function sniff(data) {
  if (data.length === 0) return { wrong: "is empty" };
  if (data[0] === 0xff && data[1] === 0xd8 && data[2] === 0xff) return { type: "image/jpeg" };
  if (data[0] === 0x89 && tag(data, 1, "PNG\r\n\x1a\n")) return { type: "image/png" };
  if (tag(data, 0, "RIFF") && tag(data, 8, "WEBP")) return { type: "image/webp" };
  if (tag(data, 0, "GIF8")) return { type: "image/gif" };
  if (tag(data, 0, "BM")) return { type: "image/bmp" };
  if (data[0] === 0x50 && data[1] >= 0x31 && data[1] <= 0x36) return { type: "image/x-portable-anymap" };
  if (tag(data, 4, "ftyp")) return { wrong: "is HEIC, AVIF or a video; save it as JPEG first" };
  if (tag(data, 0, "%PDF")) return { wrong: "is a PDF; save its page as PNG first" };
  return { wrong: "is not a JPEG, PNG, WebP, GIF, BMP or PNM picture" };
}

// The file's bytes stay as they are. A browser cannot show PNM: such a picture has no size until the server says it.
async function take(file) {
  const name = (file.name || "picture").slice(0, 200);
  const refuse = (why) => { throw new Error(`${name} ${why}.`); };
  if (file.size > limits.bytes) refuse(`has ${bytes(file.size)}; at most ${bytes(limits.bytes)} are taken`);
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer().catch(() => refuse("could not be read")));
  const { type, wrong } = sniff(head);
  if (wrong) refuse(wrong);
  const blob = file.type === type ? file : new Blob([file], { type });
  const picture = { id: newId(), name, type, blob, width: null, height: null };
  if (type === "image/x-portable-anymap") return picture;
  const bitmap = await createImageBitmap(blob).catch(() => refuse("is damaged: it could not be decoded"));
  picture.width = bitmap.width;
  picture.height = bitmap.height;
  bitmap.close();
  if (picture.width * picture.height > limits.pixels) {
    refuse(`has ${picture.width} × ${picture.height} pixels; at most ${plural(limits.pixels, "pixel")} are taken`);
  }
  return picture;
}

// {pictures, refused: [sentence]}; room is how many more fit.
export async function takeAll(files, room) {
  const taken = await Promise.allSettled([...files].slice(0, Math.max(0, room)).map(take));
  const refused = taken.filter((t) => t.status === "rejected").map((t) => t.reason.message);
  if (files.length > room) refused.push(`A question takes ${plural(limits.pictures, "picture")} at most.`);
  return { pictures: taken.filter((t) => t.status === "fulfilled").map((t) => t.value), refused };
}

export function byLink(text) {
  const link = text.trim();
  if (!/^https?:\/\//i.test(link) || !URL.canParse(link)) return null;
  const url = new URL(link);
  const last = decodeURIComponentSafe(url.pathname.split("/").pop());
  return { id: newId(), name: (last || url.host).slice(0, 200), link: url.href, width: null, height: null };
}

function decodeURIComponentSafe(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// A small square for the list of conversations, or null.
export async function cover(picture) {
  if (!picture?.blob || !picture.width) return null;
  const bitmap = await createImageBitmap(picture.blob).catch(() => null);
  if (!bitmap) return null;
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(96, 96);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  canvas.getContext("2d").drawImage(bitmap, x, y, side, side, 0, 0, 96, 96);
  bitmap.close();
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
}

// Object URLs, one a blob, until released.
const urls = new Map();
export function urlOf(id, blob) {
  if (!urls.has(id)) urls.set(id, URL.createObjectURL(blob));
  return urls.get(id);
}
export function release(kept) {
  for (const [id, url] of urls) {
    if (kept.has(id)) continue;
    URL.revokeObjectURL(url);
    urls.delete(id);
  }
}
export const shown = (picture) => Boolean(picture.blob && picture.width);

export async function askLink() {
  const input = $("link-input");
  const wrong = $("link-error");
  input.value = "";
  wrong.hidden = true;
  $("link-on").hidden = !limits.links;
  $("link-off").hidden = limits.links;
  $("link-input").disabled = $("link-add").disabled = !limits.links;
  while (await ask($("link")) === "ok") {
    const picture = byLink(input.value);
    if (picture) return picture;
    wrong.textContent = "That is not an http or https address.";
    wrong.hidden = false;
  }
  return null;
}

// A photo as a File, or null. Without a camera that the page may use (plain http from another machine, a phone),
// the system's own camera is asked through fallback().
export async function askCamera(fallback) {
  if (!navigator.mediaDevices?.getUserMedia || matchMedia("(pointer: coarse)").matches) {
    fallback();
    return null;
  }
  const dialog = $("camera");
  const video = $("video");
  const wrong = $("camera-error");
  let stream = null;
  let facing = "environment";
  let photo = null;
  const stop = () => stream?.getTracks().forEach((track) => track.stop());
  const start = async () => {
    stop();
    wrong.hidden = true;
    $("shutter").disabled = true;
    try {
      const ideal = { width: { ideal: 1920 }, height: { ideal: 1440 }, facingMode: { ideal: facing } };
      stream = await navigator.mediaDevices.getUserMedia({ video: ideal });
      if (!dialog.open) return stop();
      video.srcObject = stream;
      await video.play();
      $("shutter").disabled = false;
      const cameras = (await navigator.mediaDevices.enumerateDevices()).filter((d) => d.kind === "videoinput");
      $("camera-flip").hidden = cameras.length < 2;
    } catch (error) {
      wrong.textContent = error.name === "NotAllowedError"
        ? "The browser does not let this page use the camera. Allow it in the address bar, or choose a file."
        : "No camera was found. Choose a file instead.";
      wrong.hidden = false;
    }
  };
  $("camera-flip").onclick = () => {
    facing = facing === "environment" ? "user" : "environment";
    start();
  };
  $("shutter").onclick = async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    const time = new Date().toISOString().slice(0, 19).replace(/[T:]/g, "-");
    photo = new File([blob], `photo-${time}.jpg`, { type: blob.type });
    dialog.close();
  };
  const closed = ask(dialog);
  start();
  await closed;
  stop();
  video.srcObject = null;
  return photo;
}

// The picture as large as the window, with its neighbours one key away.
export function big(pictures, at) {
  const dialog = $("big");
  const all = pictures.filter(shown);
  let i = Math.max(0, all.indexOf(pictures[at]));
  if (!all.length) return;
  const show = (step) => {
    i = (i + step + all.length) % all.length;
    const { id, blob, name, width, height } = all[i];
    $("big-image").src = urlOf(id, blob);
    $("big-image").alt = name;
    $("big-caption").textContent = `${name}, ${width} × ${height}, ${bytes(blob.size)}`
      + (all.length > 1 ? `, ${i + 1} of ${all.length}` : "");
    dialog.classList.remove("actual");
  };
  $("big-back").hidden = $("big-next").hidden = all.length < 2;
  $("big-back").onclick = () => show(-1);
  $("big-next").onclick = () => show(1);
  $("big-close").onclick = () => dialog.close();
  $("big-image").onclick = () => dialog.classList.toggle("actual");
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") show(-1);
    if (event.key === "ArrowRight") show(1);
  };
  show(0);
  dialog.showModal();
  $("big-close").focus();
}

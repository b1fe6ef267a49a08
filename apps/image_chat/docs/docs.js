// Shows /openapi.json, and sends requests to the server that it came from.

const key = document.getElementById("key");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Text in which `x` is code.
function prose(text, name = "p") {
  return element(name, {}, ...(text ?? "").split("`").map((part, i) =>
    i % 2 ? element("code", {}, part) : part));
}

function headers(more = {}) {
  return key.value ? { ...more, Authorization: `Bearer ${key.value}` } : more;
}

// --- types ---------------------------------------------------------------------------------------

const refName = (schema) => schema.$ref?.split("/").pop();

function typeText(schema) {
  if (schema.$ref) return refName(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices) return choices.map(typeText).join(schema.allOf ? " & " : " | ");
  const type = [schema.type ?? "any"].flat().join(" | ");
  return schema.items ? `${type} of ${typeText(schema.items)}` : type;
}

function boundsText(schema) {
  const parts = [];
  if (schema.minimum !== undefined) parts.push(`${schema.minimum} to ${schema.maximum}`);
  if (schema.maxLength !== undefined) parts.push(`at most ${schema.maxLength} characters`);
  if (schema.maxItems !== undefined) parts.push(`at most ${schema.maxItems} items`);
  if (schema.default !== undefined) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join("; ");
}

function fieldRows(schema, prefix = "") {
  const rows = [];
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const needed = schema.required?.includes(name) ? " (needed)" : "";
    const about = [boundsText(field), field.description].filter(Boolean).join(". ");
    rows.push(element("tr", {},
      element("td", {}, element("code", {}, prefix + name), needed),
      element("td", { className: "soft" }, typeText(field)),
      prose(about, "td")));
    rows.push(...fieldRows(field, `${prefix}${name}.`));
  }
  return rows;
}

function schemaTable(schema) {
  const parts = schema.oneOf ?? [schema];
  const rows = parts.flatMap((part) => fieldRows(part));
  if (!rows.length) return element("p", {}, element("code", {}, typeText(schema)));
  const head = element("tr", {}, ...["Field", "Type", "Meaning"].map((text) =>
    element("th", { scope: "col" }, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- requests ------------------------------------------------------------------------------------

function readAsDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// The picture joins the last message of the request in the editor.
async function addPicture(editor, file) {
  const request = JSON.parse(editor.value);
  const last = request.messages.at(-1);
  const parts = Array.isArray(last.content) ? last.content : [{ type: "text", text: last.content }];
  parts.push({ type: "image_url", image_url: { url: await readAsDataUrl(file) } });
  last.content = parts;
  editor.value = JSON.stringify(request, null, 2);
}

async function show(response, output) {
  const said = ["retry-after", "x-request-id"].filter((name) => response.headers.has(name))
    .map((name) => `${name}: ${response.headers.get(name)}\n`).join("");
  output.textContent = `${response.status} ${response.statusText}\n${said}\n`;
  if (response.headers.get("content-type")?.startsWith("application/json")) {
    output.textContent += JSON.stringify(await response.json(), null, 2);
    return;
  }
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    output.textContent += decoder.decode(part.value, { stream: true });
    output.scrollTop = output.scrollHeight;
  }
}

function tryOut(method, path, operation) {
  const content = operation.requestBody?.content["application/json"];
  const output = element("pre", { hidden: true, tabIndex: 0 });
  const send = element("button", { type: "button", className: "send" }, "Send");
  const stop = element("button", { type: "button", disabled: true }, "Stop");
  const row = element("div", { className: "row" }, send, stop);
  const box = element("div", {}, element("h3", {}, "Try it"));
  const inputs = (operation.parameters ?? []).map((parameter) => {
    const input = element("input", { placeholder: parameter.name, ariaLabel: parameter.name });
    row.prepend(input);
    return { name: parameter.name, input };
  });
  let editor;
  if (content) {
    editor = element("textarea", { spellcheck: false, ariaLabel: "request body" });
    editor.value = JSON.stringify(content.example, null, 2);
    box.append(editor);
    if (content.example.messages) {
      const picker = element("input", { type: "file", accept: "image/*", ariaLabel: "add a picture" });
      picker.onchange = () => picker.files[0] && addPicture(editor, picker.files[0]).catch(
        (error) => { output.hidden = false; output.textContent = String(error); });
      row.append(picker);
    }
  }
  let control;
  send.onclick = async () => {
    control = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    output.hidden = false;
    output.textContent = "";
    const url = inputs.reduce((text, { name, input }) =>
      text.replace(`{${name}}`, encodeURIComponent(input.value)), path);
    try {
      await show(await fetch(url, {
        method,
        signal: control.signal,
        headers: headers(editor ? { "Content-Type": "application/json" } : {}),
        body: editor?.value,
      }), output);
    } catch (error) {
      output.textContent += `\n${error.name === "AbortError" ? "stopped" : error}`;
    }
    send.disabled = false;
    stop.disabled = true;
  };
  stop.onclick = () => control?.abort();
  box.append(row, output);
  return box;
}

// --- the page ------------------------------------------------------------------------------------

function operationCard(method, path, operation, schemas) {
  const inside = element("div", { className: "inside" });
  const request = operation.requestBody?.content["application/json"].schema;
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  inside.append(prose(operation.description), tryOut(method.toUpperCase(), path, operation));
  if (request) {
    inside.append(element("h3", {}, `Request: ${typeText(request)}`),
      schemaTable(schemas[refName(request)] ?? request));
  }
  if (answer) {
    inside.append(element("h3", {}, `Answer: ${typeText(answer)}`),
      schemaTable(schemas[refName(answer)] ?? answer));
  }
  const statuses = Object.entries(operation.responses).map(([status, { description }]) =>
    element("tr", {}, element("td", {}, element("code", {}, status)), prose(description, "td")));
  inside.append(element("h3", {}, "Statuses"), element("table", {}, element("tbody", {}, ...statuses)));
  return element("details", { className: "card", open: method === "post" && path.startsWith("/v1/chat") },
    element("summary", {}, element("span", { className: "method" }, method.toUpperCase()),
      element("span", { className: "path" }, path),
      element("span", { className: "soft" }, operation.summary)),
    inside);
}

async function load() {
  const about = document.getElementById("about");
  const response = await fetch("/openapi.json", { headers: headers() });
  if (!response.ok) {
    await response.text(); // or its connection stays taken
    about.textContent = response.status === 401 ? "This server wants an API key: enter it, then press Enter."
      : `The description cannot be read: ${response.status} ${response.statusText}`;
    return;
  }
  const api = await response.json();
  const schemas = api.components.schemas;
  about.replaceChildren(...prose(api.info.description).childNodes);
  document.getElementById("operations").replaceChildren(
    ...Object.entries(api.paths).flatMap(([path, operations]) =>
      Object.entries(operations).map(([method, operation]) =>
        operationCard(method, path, operation, schemas))));
  document.getElementById("schemas").replaceChildren(
    ...Object.entries(schemas).map(([name, schema]) => element("details", { className: "card" },
      element("summary", {}, element("span", { className: "path" }, name)),
      element("div", { className: "inside" }, prose(schema.description),
        schemaTable(schema)))));
}

document.getElementById("access").onsubmit = (event) => {
  event.preventDefault();
  load();
};
load();

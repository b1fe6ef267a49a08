// Vendored libraries are those of the registry, and our own code keeps to its rules.
import { test } from "node:test";
import { readFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { assert, modules, web } from "./harness.mjs";

test("vendored files are the packages' own, of the versions named", async () => {
  const readme = await readFile(join(web, "vendor/README.md"), "utf8");
  const rows = [...readme.matchAll(/^\| `(.+?)` \| (\S+) \| (\S+) \| `(.+?)` \|/gm)];
  assert.equal(rows.length, (await readdir(join(web, "vendor"))).filter((name) => name.endsWith(".js")).length);
  for (const [, file, name, version, from] of rows) {
    const about = JSON.parse(await readFile(join(modules, name, "package.json"), "utf8"));
    assert.equal(about.version, version);
    assert.ok((await readFile(join(web, "vendor", file))).equals(await readFile(join(modules, name, from))), file);
  }
});

test("no text becomes markup but through the sanitiser", async () => {
  for (const name of (await readdir(web)).filter((n) => n.endsWith(".js"))) {
    const code = await readFile(join(web, name), "utf8");
    assert.doesNotMatch(code, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc/, name);
    assert.doesNotMatch(code, /fetch\(["'`]https?:|import\(?["'`]https?:/, name);
  }
});

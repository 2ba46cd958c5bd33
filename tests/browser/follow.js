// A page in headless Chromium follows a stream with the browser's own EventSource. It is told on standard
// input when to stop, and then prints what the page has seen: one JSON object.
//
// Usage: node follow.js URL-OF-THE-STREAM

import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const stream = process.argv[2];
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// The page comes from another origin than the stream, as an application's would.
const pages = createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<title>follow</title>"));
await new Promise((listening) => pages.listen(0, "127.0.0.1", listening));

const profile = mkdtempSync(join(tmpdir(), "bourn-browser-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${pages.address().port}/`);
  await page.evaluate((url) => {
    // A batch counts when its control event has come: what was cut off before comes again.
    const seen = { keys: [], offsets: [], opens: 0, errors: 0 };
    window.seen = seen;
    let batch = [];
    const source = new EventSource(url);
    source.onopen = () => {
      seen.opens += 1;
      batch = [];
    };
    source.onerror = () => (seen.errors += 1);
    source.addEventListener("data", (event) => batch.push(...JSON.parse(event.data)));
    source.addEventListener("control", (event) => {
      seen.keys.push(...batch.map((message) => message.key));
      seen.offsets.push(event.lastEventId);
      batch = [];
    });
  }, stream);
  await page.waitForFunction(() => window.seen.offsets.length > 0);
  console.log("following");
  for (;;) {
    const { value, done } = await lines.next();
    if (done) break;
    // "wait N": until the page has seen N keys.
    const [, count] = value.split(" ");
    await page.waitForFunction((count) => window.seen.keys.length >= count, Number(count), { timeout: 60_000 });
    console.log(JSON.stringify(await page.evaluate(() => window.seen)));
  }
} finally {
  await browser.close();
  pages.close();
  rmSync(profile, { recursive: true, force: true });
}

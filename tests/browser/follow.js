// A page in headless Chromium follows a stream with the browser's own EventSource. It is told on standard
// input when to stop, and then prints what the page has seen: one JSON object.
//
// Usage: node follow.js URL-OF-THE-STREAM

import { createInterface } from "node:readline";
import { withChromium } from "./chromium.js";

const stream = process.argv[2];
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

await withChromium(async (browser, origin) => {
  const page = await browser.newPage();
  await page.goto(origin);
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
});

// Runs the README's samples for browsers in headless Chromium, as they stand there: the one for a console on a page of the
// server itself, the client on a page of another origin. Prints a JSON object for each.
//
// Usage: node readme.js SERVER CONSOLE-SAMPLE CLIENT-SAMPLE

import { withChromium } from "./chromium.js";

const [server, console_sample, client] = process.argv.slice(2);

await withChromium(async (browser, origin) => {
  const page = await browser.newPage();
  const printed = [];
  page.on("console", (message) => printed.push(message.type()));
  await page.goto(`${server}/v1/entities/pages`);
  await page.addScriptTag({ content: console_sample });
  await page.waitForEvent("console", (message) => message.type() === "table");
  console.log(JSON.stringify({ console: printed }));

  const other = await browser.newPage();
  await other.goto(origin);
  await other.addScriptTag({ content: client });
  const seen = await other.evaluate(async (server) => {
    const table = `${server}/v1/entities/pages`;
    let rows, txids = [];
    const until = (holds) =>
      new Promise((done) => {
        const look = () => (holds() ? done() : setTimeout(look, 10));
        look();
      });
    // Small pages, so that the list has several.
    follow(`${table}?limit=2`, (now, ids) => ((rows = now), txids.push(...ids)));
    await until(() => rows);
    const listed = rows.size;
    const send = (method, url, body, id) =>
      fetch(url, {
        method,
        headers: { "content-type": "application/json", "x-transaction-id": id },
        body: body && JSON.stringify(body),
      });
    await send("POST", table, { id: "own" }, "own-make");
    await send("PATCH", `${table}/own`, { name: "changed" }, "own-change");
    await until(() => txids.includes("own-change"));
    const name = rows.get("own").name;
    await send("DELETE", `${table}/own`, null, "own-delete");
    await until(() => txids.includes("own-delete"));
    return { listed, name, gone: !rows.has("own") };
  }, server);
  console.log(JSON.stringify(seen));
});

// Headless Chromium for the tests, and an origin of its own for their pages, as an application's would be.

import { createServer } from "node:http";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

/** Gives the browser and the origin to `run`, and closes both when it has ended. */
export async function withChromium(run) {
  const pages = createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<title>test</title>"));
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
    await run(browser, `http://127.0.0.1:${pages.address().port}/`);
  } finally {
    await browser.close();
    pages.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

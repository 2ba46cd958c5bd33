// The Durable Streams client and StreamDB (TanStack DB), unmodified, on a derived stream. Prints what they saw as
// one JSON object.
//
// Usage: node follow.js BASE-URL

import { stream } from "@durable-streams/client";
import { createStateSchema, createStreamDB } from "@durable-streams/state/db";

const base = process.argv[2];
const pages = `${base}/v1/entities/pages`;

const send = (method, url, transaction, body) =>
  fetch(url, {
    method,
    headers: { "content-type": "application/json", "x-transaction-id": transaction },
    body: body && JSON.stringify(body),
  });

// A schema that takes every row as it is.
const schema = { "~standard": { version: 1, vendor: "bourn", validate: (value) => ({ value }) } };

const db = createStreamDB({
  streamOptions: { url: pages, contentType: "application/json" },
  state: createStateSchema({ pages: { schema, type: "page", primaryKey: "id" } }),
});
const name = (id) => db.collections.pages.get(id)?.name ?? null;
const seen = {};

await db.preload();
seen.preloaded = db.collections.pages.size;

const write = async (transaction, method, url, body) => {
  const back = db.utils.awaitTxId(transaction, 10_000);
  await send(method, url, transaction, body);
  await back;
};
await write("t-create", "POST", pages, { id: "mine", name: "one" });
seen.created = name("mine");
await write("t-update", "PATCH", `${pages}/mine`, { name: "two" });
seen.updated = name("mine");
await write("t-delete", "DELETE", `${pages}/mine`);
seen.deleted = name("mine");
seen.left = db.collections.pages.size;
db.close();

// Two tables in one stream: each message names its type, by which StreamDB keeps them apart.
const attachments = `${base}/v1/entities/attachments`;
const both = createStreamDB({
  streamOptions: { url: `${base}/v1/entities/attachments,pages`, contentType: "application/json" },
  state: createStateSchema({
    pages: { schema, type: "page", primaryKey: "id" },
    attachments: { schema, type: "attachment", primaryKey: "id" },
  }),
});
await both.preload();
const arrives = both.utils.awaitTxId("t-attach", 10_000);
await send("POST", attachments, "t-attach", { id: "file", filename: "notes.txt" });
await arrives;
seen.both = [both.collections.pages.size, both.collections.attachments.get("file")?.filename ?? null];
both.close();

const told = (messages) => messages.map((message) => `${message.headers.operation} ${message.key}`);

// Without following, the client gives what one read gives, and where to go on.
const history = [];
for (let offset = "-1", done = false; !done; ) {
  const response = await stream({ url: pages, offset, live: false });
  history.push(...(await response.json()));
  ({ offset, upToDate: done } = response);
}
seen["catch-up"] = told(history);

for (const live of ["long-poll", "sse"]) {
  const response = await stream({ url: pages, offset: "-1", live });
  const messages = [];
  await new Promise((done) =>
    response.subscribeJson((batch) => {
      messages.push(...batch.items);
      if (batch.upToDate) done();
    }),
  );
  seen[live] = told(messages);
}
console.log(JSON.stringify(seen));
process.exit(0);

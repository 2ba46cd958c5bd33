// The Durable Streams client, unmodified, on a stored stream. Prints what it saw as one JSON object.
//
// Usage: node stored.js BASE-URL

import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";

const url = `${process.argv[2]}/v1/stream/clients/one`;
const seen = {};

const handle = await DurableStream.create({ url, contentType: "application/json" });
await handle.append(JSON.stringify({ n: 1 }));

const producer = new IdempotentProducer(handle, "tester", { lingerMs: 1, maxBatchBytes: 64 });
for (let n = 2; n <= 20; n++) producer.append(JSON.stringify({ n }));
await producer.flush();

const history = await stream({ url, offset: "-1", live: false });
seen["catch-up"] = (await history.json()).map(({ n }) => n);

// Followers see what comes while they follow, until the stream is closed.
const followers = ["long-poll", "sse"].map(async (live) => {
  const response = await stream({ url, offset: "-1", live, json: true });
  const numbers = [];
  await new Promise((done) => {
    response.subscribeJson(async (batch) => {
      numbers.push(...batch.items.map(({ n }) => n));
      if (numbers.length >= 22) done();
    });
  });
  seen[live] = numbers;
  response.cancel();
});
producer.append(JSON.stringify({ n: 21 }));
await producer.flush();
await producer.close(JSON.stringify({ n: 22 }));
await Promise.all(followers);

seen.closed = (await handle.head()).streamClosed;
await handle.delete();
seen.left = (await fetch(url)).status;
console.log(JSON.stringify(seen));
process.exit(0);

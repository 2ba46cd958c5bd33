// The official conformance suite of the Durable Streams protocol against the server at BOURN_URL, which must wait 1 s
// in long-polls and may send webhooks to this machine.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

const baseUrl = process.env.BOURN_URL;
if (!baseUrl) throw new Error("set BOURN_URL to the server's URL, such as http://127.0.0.1:4437");
runConformanceTests({ baseUrl, longPollTimeoutMs: 1_000, subscriptions: true });

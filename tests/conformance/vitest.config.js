import { defineConfig } from "vitest/config";

// The package's tests are a function: the file that calls it is ours. Tests that wait for a long-poll take their time.
export default defineConfig({ test: { include: ["suite.test.js"], testTimeout: 30_000 } });

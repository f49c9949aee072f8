// Runs a test's commands: each is a line of JSON on standard input, and so is its answer on standard
// output. What the clients themselves say goes to standard error.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

/** The installed packages, which are not beside these scripts. */
export const require = createRequire(`${process.env.PUBLIC_CLIENTS}/`);

console.log = console.info = console.debug = console.error;

/** Answers commands with the functions of the same names until standard input ends. */
export async function serve(functions) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { command, ...options } = JSON.parse(line);
    let answer;
    try {
      answer = { answer: (await functions[command](options)) ?? null };
    } catch (error) {
      answer = { error: `${error.name}: ${error.message}`, cause: error.cause?.name };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  process.exit(0);
}

/** Waits for what a probe finds. */
export async function until(probe) {
  let found;
  while (!(found = probe())) await new Promise((resolve) => setTimeout(resolve, 10));
  return found;
}

/** A `fetch` that keeps what was asked and answered. */
export function observedFetch() {
  const requests = [];
  const observed = async (request) => {
    const response = await fetch(request);
    requests.push({
      status: response.status,
      query: new URL(request.url).search,
      ifNoneMatch: request.headers.get('if-none-match'),
      etag: response.headers.get('etag'),
    });
    return response;
  };
  return { observed, requests };
}

/** What the SDKs tell of an evaluation. */
export function told({ value, variant, reason, errorCode, errorMessage, flagMetadata }) {
  return { value, variant, reason, errorCode, errorMessage, flagMetadata };
}

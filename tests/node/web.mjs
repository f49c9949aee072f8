// The OpenFeature SDK for browsers with the public OFREP provider: all flags at once, kept, and
// fetched again when the server tells of a change. Node has an EventSource, as browsers have.

import { observedFetch, require, serve, told, until } from './commands.mjs';

const { OpenFeature, ProviderEvents } = require('@openfeature/web-sdk');
const { OFREPWebProvider } = require('@openfeature/ofrep-web-provider');

const { observed, requests } = observedFetch();
const happened = [];
const opened = [];

// What a browser keeps between two visits of a page.
const kept = new Map();
globalThis.localStorage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => kept.set(name, value),
  removeItem: (name) => kept.delete(name),
};

const NativeEventSource = globalThis.EventSource;
globalThis.EventSource = class extends NativeEventSource {
  constructor(address) {
    super(address);
    opened.push(this);
  }
};

for (const name of Object.values(ProviderEvents)) {
  OpenFeature.addHandler(name, (details) => happened.push({ name, ...details }));
}

await serve({
  async start({ url, key, context, options }) {
    await OpenFeature.setContext(context);
    const provider = new OFREPWebProvider({
      baseUrl: url,
      headers: [['Authorization', `Bearer ${key}`]],
      fetchImplementation: observed,
      ...options,
    });
    await OpenFeature.setProviderAndWait(provider);
  },
  async change({ context }) {
    await OpenFeature.setContext(context);
  },
  evaluate({ kind, flag, fallback }) {
    return told(OpenFeature.getClient()[`get${kind}Details`](flag, fallback));
  },
  requests() {
    return requests.splice(0);
  },
  async request({ status }) {
    return until(() => requests.find((request) => request.status === status));
  },
  async event({ name }) {
    return until(() => happened.splice(0).find((event) => event.name === name));
  },
  async streams({ state }) {
    await until(() => opened.some((stream) => stream.readyState === state));
    return opened.map((stream) => new URL(stream.url).pathname);
  },
  async stop() {
    await OpenFeature.close();
    for (const stream of opened) stream.close();
  },
});

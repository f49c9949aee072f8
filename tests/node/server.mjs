// The OpenFeature SDK for servers with the public OFREP provider: one request for each evaluation.

import { observedFetch, require, serve, told } from './commands.mjs';

const { OpenFeature } = require('@openfeature/server-sdk');
const { OFREPProvider } = require('@openfeature/ofrep-provider');

const { observed, requests } = observedFetch();

await serve({
  async start({ url, key }) {
    const provider = new OFREPProvider({
      baseUrl: url,
      headers: [['Authorization', `Bearer ${key}`]],
      fetchImplementation: observed,
    });
    await OpenFeature.setProviderAndWait(provider);
  },
  async evaluate({ kind, flag, fallback, context }) {
    return told(await OpenFeature.getClient()[`get${kind}Details`](flag, fallback, context));
  },
  requests() {
    return requests.splice(0);
  },
});

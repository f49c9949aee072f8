// An EventSource as browsers have it, and what it hears.

import { serve, until } from './commands.mjs';

const heard = [];
let source;

await serve({
  async open({ address }) {
    source = new EventSource(address);
    source.onopen = () => heard.push({ kind: 'open' });
    source.onerror = () => heard.push({ kind: 'error', state: source.readyState });
    source.onmessage = ({ data, lastEventId }) =>
      heard.push({ kind: 'message', data: JSON.parse(data), id: lastEventId });
  },
  async next() {
    await until(() => heard.length > 0);
    return heard.shift();
  },
  close() {
    source.close();
  },
});

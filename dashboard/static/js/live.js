// Pages that follow the data (see dashboard/streams.py).
//
// A page has <div id="live" data-live="/live?experiment=KEY" data-live-target="#main">. When the
// stream says that something has changed, the page's own address is read again and its target is
// morphed: what is open, focused, scrolled or being typed stays as it is. An element with
// data-live-keep is left alone with all that is in it. Afterwards the target gets the event
// "live:updated".

const WATCHDOG_MS = 12_000; // a stream beats every 5 s
const PATIENCE_MS = 4_000; // a lost connection that comes back sooner is nothing to worry about
const AGAIN_MS = [5_000, 10_000, 20_000, 60_000];
const READ_MS = 30_000;
const SHARE_OF_TIME = 4; // reading the page again takes a fifth of the time at most

const place = document.getElementById("live");
if (place) follow(place.dataset.live, place.dataset.liveTarget ?? "#main");

function follow(address, selector) {
  const status = document.querySelector("[data-live-status]");
  let source = null;
  let seen = null; // the id of the last event that this page has taken in
  let asOf = new Date(); // of what the page shows
  let beat = { state: "flowing", data_until: null };
  let wanted = null; // the id of a change that the page has not taken in
  let reading = false;
  let restUntil = 0;
  let failures = 0;
  const timers = new Map();

  function after(name, ms, act) {
    stop(name);
    timers.set(name, setTimeout(act, ms));
  }

  function stop(name) {
    clearTimeout(timers.get(name));
    timers.delete(name);
  }

  function say(state, text, detail = "") {
    if (!status) return;
    status.hidden = false;
    status.title = detail;
    if (status.dataset.state === state && status.textContent === text) return; // told already
    status.dataset.state = state;
    status.textContent = text;
  }

  function sayLost() {
    say("lost", `Connection lost, figures as of ${clock(asOf)} UTC`);
  }

  function sayOut() {
    say("lost", `Signed out, figures as of ${clock(asOf)} UTC: load the page to sign in`);
  }

  function sayBeat() {
    if (beat.state === "unavailable") {
      say("lost", `The database does not answer, figures as of ${clock(asOf)} UTC`);
    } else if (beat.state === "late") {
      const since = beat.data_until && new Date(beat.data_until);
      say("late", since ? `No new data since ${minute(since)} UTC` : "No data yet");
    } else {
      say("live", "Live", `Figures contain what came until ${clock(new Date(beat.data_until))} UTC`);
    }
  }

  function open() {
    close();
    const url = new URL(address, location.href);
    if (seen) url.searchParams.set("seen", seen);
    const stream = new EventSource(url);
    source = stream;
    if (!status?.dataset.state) say("connecting", "Connecting…");
    after("watchdog", WATCHDOG_MS, lose);
    stream.addEventListener("known", (event) => (seen = event.lastEventId));
    stream.addEventListener("changed", (event) => {
      wanted = event.lastEventId;
      read();
    });
    stream.addEventListener("beat", (event) => {
      if (!wanted) failures = 0;
      stop("lost");
      after("watchdog", WATCHDOG_MS, lose);
      beat = JSON.parse(event.data);
      sayBeat();
    });
    stream.addEventListener("error", () => {
      if (stream.readyState === EventSource.CLOSED) {
        refused();
      } else if (!timers.has("lost")) {
        after("lost", PATIENCE_MS, sayLost);
      }
    });
    if (wanted && !seen) read(); // told when nobody looked, and no stream can tell it again
  }

  function close() {
    source?.close();
    source = null;
    for (const name of [...timers.keys()]) stop(name);
  }

  // The stream was refused, and does not come back by itself. It cannot say why; the page can.
  async function refused() {
    close();
    const { status: code } = await load();
    if (code === 401) sayOut();
    else lose();
  }

  function lose() {
    close();
    sayLost();
    after("again", AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)], open);
    failures += 1;
  }

  // One at a time; what changes meanwhile is read afterwards, once.
  async function read() {
    if (reading || !wanted || document.hidden) return;
    const rest = restUntil - performance.now();
    if (rest > 0) {
      after("read", rest, read);
      return;
    }
    reading = true;
    const id = wanted;
    const from = source;
    const began = performance.now();
    const { status: code, text } = await load();
    reading = false;
    restUntil = performance.now() + SHARE_OF_TIME * (performance.now() - began);
    if (code === 200) {
      update(text);
      asOf = new Date();
      seen = id;
      failures = 0;
      if (wanted === id) wanted = null;
      if (source) read();
    } else if (code === 401) {
      close();
      sayOut();
    } else if (source === from) {
      lose(); // the stream tells of the change again when it is back
    }
  }

  async function load() {
    try {
      const answer = await fetch(location.href, {
        headers: { "HX-Request": "true", Accept: "text/html" },
        signal: AbortSignal.timeout(READ_MS),
      });
      return { status: answer.status, text: await answer.text() };
    } catch {
      return { status: 0, text: "" };
    }
  }

  function update(text) {
    const target = document.querySelector(selector);
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const news = fresh.querySelector(selector);
    if (!target || !news) return;
    Idiomorph.morph(target, news, { ignoreActiveValue: true, callbacks: KEEPING });
    if (fresh.title) document.title = fresh.title;
    htmx.process(target);
    target.dispatchEvent(new CustomEvent("live:updated", { bubbles: true }));
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  if (!document.hidden) open();
}

const KEEPING = {
  beforeNodeMorphed: (old) => !(old instanceof Element && isKept(old)),
  beforeNodeRemoved: (old) => !(old instanceof Element && isKept(old)),
  beforeAttributeUpdated: (name, node) =>
    !(name === "open" && (node.localName === "details" || node.localName === "dialog")),
};

function isKept(node) {
  if (node.hasAttribute("data-live-keep")) return true;
  if (node.localName === "dialog") return node.open;
  return node.localName === "form" && isBegun(node);
}

// A form that somebody has begun to fill.
function isBegun(form) {
  return [...form.elements].some((field) => {
    if (field.localName === "select") {
      return [...field.options].some((option) => option.selected !== option.defaultSelected);
    }
    if (field.type === "checkbox" || field.type === "radio") {
      return field.checked !== field.defaultChecked;
    }
    return "defaultValue" in field && field.type !== "hidden" && field.value !== field.defaultValue;
  });
}

function clock(at) {
  return at.toISOString().slice(11, 19);
}

function minute(at) {
  const day = at.toISOString().slice(0, 10);
  const time = at.toISOString().slice(11, 16);
  return day === new Date().toISOString().slice(0, 10) ? time : `${day} ${time}`;
}

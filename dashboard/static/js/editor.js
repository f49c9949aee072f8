// The editor while one types: the whole form is sent, and the answer is put into the page. What is
// shown, checked and planned is made by the server alone.
import { keepLines, goToLine } from "./editor-yaml.js";
import { keepTabs, showTab } from "./editor-tabs.js";

const PAUSE = 300;
const editor = () => document.getElementById("editor");

let edits = 0; // how many there were: an answer to fewer comes too late
let waiting = 0;
let asking = null;
const touched = new Set(); // form, yaml: typed into since the last answer that was shown
let leaves = false;
const folded = new Set(); // what was folded, or unfolded, by hand

function later() {
  clearTimeout(waiting);
  waiting = setTimeout(check, PAUSE);
}

async function check(action = "") {
  clearTimeout(waiting);
  asking?.abort();
  asking = new AbortController();
  const asked = edits;
  const body = new URLSearchParams(new FormData(editor()));
  if (action) body.set("do", action);
  if (touched.size === 1 && !body.has("source")) body.set("source", [...touched][0]);
  let answer;
  try {
    answer = await fetch(editor().dataset.check, {
      method: "POST",
      body,
      headers: { "HX-Request": "true" },
      signal: asking.signal,
    });
  } catch (error) {
    if (error.name !== "AbortError") say("The server does not answer: what you typed is still here, unchecked.");
    return;
  }
  const gone = answer.headers.get("HX-Redirect");
  if (gone) {
    leaves = true;
    location.assign(gone);
    return;
  }
  if (!answer.ok) {
    say("It could not be checked. What you typed is still here; save to see why.");
    return;
  }
  const text = await answer.text();
  if (asked !== edits) return;
  touched.clear();
  put(text);
}

function say(words) {
  const status = document.getElementById("told-status");
  status.textContent = words;
  status.className = "callout callout--warning";
  status.scrollIntoView({ block: "nearest" });
}

function put(text) {
  const focused = document.activeElement?.id;
  Idiomorph.morph(editor(), text, {
    morphStyle: "outerHTML",
    ignoreActiveValue: true,
    callbacks: {
      beforeAttributeUpdated: (name, node) =>
        name !== "style" && !(name === "data-tab") && !(name === "open" && folded.has(node.id)),
    },
  });
  dress();
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus();
}

function dress() {
  keepTabs(editor());
  keepLines(document.getElementById("yaml"));
}

// A place that may be folded away, or on another tab.
function goTo(id) {
  const place = document.getElementById(id);
  if (!place) return;
  const pane = place.closest("[id^=pane-]");
  if (pane) showTab(editor(), pane.id.slice("pane-".length));
  for (let at = place; at; at = at.parentElement?.closest("details")) {
    if (at.tagName === "DETAILS") at.open = true;
  }
  const inner = place.matches("input, select, textarea")
    ? place
    : place.querySelector("input:not([type=hidden], :disabled), select, textarea, button");
  place.scrollIntoView({ block: "center" });
  (inner ?? place).focus({ preventScroll: true });
}

document.addEventListener("input", (event) => {
  if (!event.target.closest("#editor")) return;
  edits += 1;
  const area = event.target.closest("[data-area]")?.dataset.area;
  if (area === "form" || area === "yaml") touched.add(area);
  if (event.target.id === "yaml") keepLines(event.target);
  later();
});

document.addEventListener("click", (event) => {
  const summary = event.target.closest("#editor summary");
  if (summary) folded.add(summary.parentElement.id);
  const link = event.target.closest('#editor a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  goTo(link.getAttribute("href").slice(1));
  if (link.dataset.line) goToLine(document.getElementById("yaml"), Number(link.dataset.line));
});

document.addEventListener("submit", (event) => {
  if (event.target.id !== "editor") return;
  const action = event.submitter?.value ?? "check";
  if (action === "save" || action === "start") {
    leaves = true;
    return;
  }
  event.preventDefault();
  act(action);
});

// A button of the form works on what the YAML says by now.
async function act(action) {
  if (touched.has("yaml")) await check();
  edits += 1;
  touched.add("form");
  await check(action);
}

addEventListener("beforeunload", (event) => {
  if (edits > 0 && !leaves) event.preventDefault();
});
addEventListener("pageshow", () => {
  leaves = false;
});

dress();

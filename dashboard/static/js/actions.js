// Forms of actions open in a dialog; without this they are pages of their own. The form is read
// when it is opened, so that it is about the experiment as it stands then.

const LOST =
  "The connection was lost, so it is not known whether it was done. Send it again: what was done already is not done twice.";

let dialog = null;
let opener = null;

function place() {
  if (dialog) return dialog;
  dialog = document.createElement("dialog");
  dialog.className = "act-dialog";
  dialog.setAttribute("aria-labelledby", "act-title");
  dialog.addEventListener("close", () => {
    dialog.replaceChildren();
    const back = opener?.isConnected ? opener : document.querySelector("[data-act]");
    (back?.closest("details.menu:not([open])")?.querySelector("summary") ?? back)?.focus();
    opener = null;
  });
  dialog.addEventListener("click", (event) => {
    if (event.target.closest("[data-act-close]")) {
      event.preventDefault();
      dialog.close();
    }
  });
  dialog.addEventListener("submit", send);
  dialog.addEventListener("input", sum);
  // Outside of what is morphed when the page follows the data.
  document.body.append(dialog);
  return dialog;
}

async function open(link) {
  opener = link;
  let answer;
  try {
    answer = await fetch(link.href, { headers: { "HX-Request": "true" } });
  } catch {
    location.assign(link.href);
    return;
  }
  if (leave(answer)) return;
  show(await answer.text());
}

// Whether the server sends the browser elsewhere: to the page, or to sign in.
function leave(answer) {
  const address = answer.headers.get("HX-Redirect");
  if (!address) return false;
  const target = new URL(address, location.href);
  if (target.pathname === location.pathname && target.search === location.search) location.reload();
  else location.assign(target);
  return true;
}

function show(text) {
  const box = place();
  box.innerHTML = text; // made by the server, which escapes what is not its own
  if (!box.querySelector("form")) {
    location.assign(opener?.href ?? location.href); // a problem with a page of its own
    return;
  }
  if (!box.open) {
    opener?.closest("details.menu")?.removeAttribute("open");
    box.showModal();
  }
  sum();
  const problem = box.querySelector("[data-act-problem]");
  const first =
    box.querySelector("input:checked, input[type=radio], input[type=text]") ??
    box.querySelector("textarea, .act-buttons .btn");
  (problem ?? first)?.focus();
}

async function send(event) {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button:not([type=button])");
  if (!button || button.disabled) return; // it is on its way
  button.disabled = true;
  let answer;
  try {
    answer = await fetch(form.action, {
      method: "POST",
      headers: { "HX-Request": "true" },
      body: new URLSearchParams(new FormData(form)),
    });
  } catch {
    button.disabled = false;
    tell(form, LOST);
    return;
  }
  if (leave(answer)) return;
  const text = await answer.text();
  if (text.includes("data-act-form")) show(text);
  else {
    button.disabled = false;
    tell(form, `That could not be done (${answer.status}). Look at the experiment before you try again.`);
  }
}

function tell(form, words) {
  form.querySelector("[data-act-problem]")?.remove();
  const problem = document.createElement("p");
  problem.className = "callout callout--critical";
  problem.dataset.actProblem = "";
  problem.setAttribute("role", "alert");
  problem.tabIndex = -1;
  problem.textContent = words;
  form.querySelector(".act-title").after(problem);
  problem.focus();
}

// What the weights add up to, while they are typed.
function sum() {
  const box = document.querySelector("[data-act-weights]");
  if (!box) return;
  const values = [...box.querySelectorAll("input[type=text]")].map((input) =>
    Number(input.value.replace("%", "").replace(",", ".").trim() || NaN),
  );
  const total = values.reduce((a, b) => a + b, 0);
  const words = box.querySelector("[data-act-sum]");
  const isOff = !(Math.abs(total - 100) < 1e-4);
  words.textContent = Number.isNaN(total)
    ? "Give every variant a number"
    : `Sum ${Number(total.toFixed(4))} %${isOff ? ", must be 100 %" : ""}`;
  words.classList.toggle("act-sum--off", isOff);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-act]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});

// On a page of its own a form is sent by the browser; only its button must not be hit twice.
document.addEventListener("submit", (event) => {
  if (event.target.matches("main [data-act-form]")) {
    const button = event.target.querySelector("button");
    if (button.dataset.sent) event.preventDefault();
    button.dataset.sent = "yes";
  }
});
document.addEventListener("input", sum);
addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("main [data-act-form] button")) delete button.dataset.sent;
  sum();
});

// A list that somebody pages back in is left as it is, since what is new would tear a gap into it;
// it says so, with a way back to the newest.
document.addEventListener("htmx:afterSwap", (event) => {
  const link = event.detail.requestConfig?.elt;
  const list = document.getElementById(link?.dataset.pastMore ?? "");
  if (list) {
    list.setAttribute("data-live-keep", "");
    const note = document.getElementById("live") && list.querySelector("[data-past-held]");
    if (note) note.hidden = false;
  } else if (link?.hasAttribute("data-past-newest")) {
    const note = link.closest("[data-past-held]");
    note.hidden = true;
    note.closest("[data-live-keep]")?.removeAttribute("data-live-keep");
  }
});

// A link to a decision opens its evidence.
function unfold() {
  const target = location.hash.startsWith("#decision-") && document.getElementById(location.hash.slice(1));
  const more = target && target.querySelector("details");
  if (more) more.open = true;
}
addEventListener("hashchange", unfold);
unfold();

// The notice of what was done is for once: a page that is loaded again does not say it again, and
// one that follows the data does not say it for ever.
const NOTICE_MS = 20_000;
const here = new URL(location.href);
if (here.searchParams.has("done")) {
  here.searchParams.delete("done");
  history.replaceState(null, "", here);
  setTimeout(() => document.getElementById("act-notice")?.remove(), NOTICE_MS);
}

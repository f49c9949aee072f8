// One pane beside the form at a time; on a phone the form is one of them.
let chosen = "";

export function showTab(editor, name) {
  chosen = name;
  editor.dataset.tab = name;
  for (const tab of editor.querySelectorAll("[role=tab]")) {
    const own = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(own));
    tab.tabIndex = own ? 0 : -1;
  }
}

export function keepTabs(editor) {
  const tabs = editor.querySelector("[role=tablist]");
  tabs.hidden = false;
  for (const pane of editor.querySelectorAll("[id^=pane-]")) {
    pane.setAttribute("role", "tabpanel");
  }
  const wide = matchMedia("(min-width: 981px)").matches;
  showTab(editor, chosen && !(wide && chosen === "form") ? chosen : wide ? "checklist" : "form");
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest("#editor [role=tab]");
  if (tab) showTab(tab.closest("form"), tab.id.slice("tab-".length));
});

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.("#editor [role=tab]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!tab || !step) return;
  const tabs = [...tab.parentElement.children].filter((one) => one.offsetParent);
  const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
  showTab(tab.closest("form"), next.id.slice("tab-".length));
  next.focus();
});

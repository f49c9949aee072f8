// Before anything is drawn: the theme that was chosen, else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("turnout-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(chosen) ? chosen : "system";
})();

// The list: what a search sets aside, and tips that Escape puts away.

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.body.classList.add("tips-off");
  // A slash goes to the search, as people know it, unless they are writing.
  const writes = event.target.closest?.("input, select, textarea, [contenteditable]");
  if (event.key === "/" && !writes && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const search = document.getElementById("q");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  }
});
for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, () => document.body.classList.remove("tips-off"));
}

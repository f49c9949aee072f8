// Copies the link of a snapshot: <button data-copy="/snapshots/ID">.

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const words = (button.dataset.words ??= button.textContent);
  const link = new URL(button.dataset.copy, location.href).href;
  button.textContent = (await copy(link)) ? "Copied" : link;
  setTimeout(() => (button.textContent = words), 2_000);
});

// The clipboard of today asks for https; the older way works on a plain connection, too.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "visually-hidden";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

// What every page does: the theme, and menus that close when one looks elsewhere.

const root = document.documentElement;
const themes = document.querySelectorAll("[data-theme-choice]");

function showTheme() {
  for (const button of themes) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === root.dataset.theme));
  }
}

for (const button of themes) {
  button.addEventListener("click", () => {
    root.dataset.theme = button.dataset.themeChoice;
    try {
      localStorage.setItem("turnout-theme", root.dataset.theme);
    } catch {
      // It holds for this page, then.
    }
    showTheme();
  });
}
showTheme();

function closeMenus(except) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (menu !== except) menu.open = false;
  }
}

document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = document.activeElement?.closest("details.menu[open]");
  closeMenus(null);
  menu?.querySelector("summary").focus();
});

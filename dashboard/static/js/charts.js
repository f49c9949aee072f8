// Reads charts out: at the pointer, and by the arrow keys when a chart has the focus. The numbers
// are those of the table behind the chart. Listens at the document, so that charts may come and go.
const SVG = "http://www.w3.org/2000/svg";
let box = null;
let active = null; // { plot, index }

const plotOf = (target) => (target instanceof Element ? target.closest("[data-chart]") : null);
const placesOf = (plot) => (plot.dataset.x ? plot.dataset.x.split(" ").map(Number) : []);
const rowsOf = (plot) => plot.closest("figure")?.querySelector(".chart-numbers tbody")?.rows ?? [];

/** The drawing without its margins, where the places in per cent are measured. */
const roomOf = (plot) => plot.querySelector(".chart-svg").getBoundingClientRect();

/** An epoch holds until the next one; of a line the nearest point is meant. */
function indexAt(plot, clientX) {
  const places = placesOf(plot);
  const room = roomOf(plot);
  const place = (100 * (clientX - room.left)) / room.width;
  if (!places.length || place < -2 || place > 102) return -1;
  const after = places.findIndex((p) => p > place);
  const before = (after < 0 ? places.length : after) - 1;
  if (plot.dataset.chart === "band") return before; // none before the first one
  if (before < 0) return 0;
  if (after < 0) return before;
  return place - places[before] <= places[after] - place ? before : after;
}

function readout() {
  if (!box?.isConnected) {
    box = document.createElement("div");
    box.className = "chart-read";
    box.setAttribute("role", "status");
    box.hidden = true;
    document.body.append(box);
  }
  return box;
}

function fill(plot, index) {
  const row = rowsOf(plot)[index];
  if (!row) return false;
  const names = [...row.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent);
  const colours = new Map(
    [...plot.parentElement.querySelectorAll(".chart-legend li")].map((item) => [
      item.textContent,
      item.firstElementChild.getAttribute("class"),
    ]),
  );
  const head = document.createElement("b");
  head.textContent = row.cells[0].textContent;
  const list = document.createElement("dl");
  for (let k = 1; k < row.cells.length; k += 1) {
    const value = row.cells[k].textContent;
    if (!value) continue;
    const name = document.createElement("dt");
    if (colours.has(names[k])) {
      const key = document.createElement("i");
      key.className = colours.get(names[k]);
      name.append(key);
    }
    name.append(names[k]);
    const number = document.createElement("dd");
    number.textContent = value;
    list.append(name, number);
  }
  readout().replaceChildren(head, list);
  return true;
}

function draw(plot, index) {
  const place = `${placesOf(plot)[index]}%`;
  const cross = plot.querySelector(".cross");
  cross.setAttribute("x1", place);
  cross.setAttribute("x2", place);
  cross.classList.add("on");
  plot.querySelectorAll(".at-cross").forEach((dot) => dot.remove());
  for (const line of plot.dataset.y?.split(";") ?? []) {
    const [colour, heights] = line.split(":");
    const height = heights.split(" ")[index];
    if (height === "-") continue;
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("class", `dot at-cross c${colour}`);
    dot.setAttribute("cx", place);
    dot.setAttribute("cy", height);
    dot.setAttribute("r", "4");
    cross.after(dot);
  }
}

function show(plot, index, y) {
  if (active && active.plot !== plot) hide();
  if (index < 0 || !fill(plot, index)) {
    hide();
    return;
  }
  active = { plot, index };
  draw(plot, index);
  const room = roomOf(plot);
  const at = room.left + (room.width * placesOf(plot)[index]) / 100;
  const shown = readout();
  shown.hidden = false;
  const { width, height } = shown.getBoundingClientRect();
  const right = at + 14 + width < document.documentElement.clientWidth - 8;
  const top = y === undefined ? room.top + 8 : y - height / 2;
  shown.style.left = `${Math.max(8, right ? at + 14 : at - 14 - width)}px`;
  shown.style.top = `${Math.max(8, Math.min(top, innerHeight - height - 8))}px`;
}

function hide() {
  if (box) box.hidden = true;
  if (active) {
    active.plot.querySelector(".cross")?.classList.remove("on");
    active.plot.querySelectorAll(".at-cross").forEach((dot) => dot.remove());
    active = null;
  }
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };

document.addEventListener("pointermove", (event) => {
  const plot = plotOf(event.target);
  if (plot) show(plot, indexAt(plot, event.clientX), event.clientY);
  else if (active && active.plot !== document.activeElement) hide();
});
document.addEventListener("pointerdown", (event) => {
  const plot = plotOf(event.target);
  if (plot) show(plot, indexAt(plot, event.clientX), event.clientY);
  else hide();
});
document.addEventListener("keydown", (event) => {
  const plot = document.activeElement;
  if (!plot?.matches("[data-chart]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = placesOf(plot).length - 1;
  const from = active?.plot === plot ? active.index : last;
  let to = null;
  if (event.key in STEPS) to = Math.max(0, Math.min(last, from + STEPS[event.key]));
  else if (event.key === "Home") to = 0;
  else if (event.key === "End") to = last;
  else if (event.key === "Escape") hide();
  if (to === null) return;
  event.preventDefault();
  show(plot, to);
});
document.addEventListener("focusin", (event) => {
  const plot = event.target;
  if (plot.matches("[data-chart]:focus-visible")) show(plot, placesOf(plot).length - 1);
});
document.addEventListener("focusout", (event) => {
  if (event.target.matches("[data-chart]")) hide();
});
addEventListener("scroll", () => hide(), { passive: true });
// New data: the drawing has been replaced, the pointer has not moved.
document.addEventListener("htmx:afterSettle", () => {
  if (active?.plot.isConnected && !readout().hidden) show(active.plot, active.index);
  else hide();
});

// The numbers of lines beside the YAML; those with something wrong are marked.
export function keepLines(area) {
  const gutter = document.getElementById("yaml-lines");
  const wrong = new Set(area.dataset.wrong.split(" "));
  const count = area.value.split("\n").length;
  gutter.replaceChildren(
    ...Array.from({ length: count }, (_, index) => {
      const line = document.createElement("div");
      line.textContent = index + 1;
      if (wrong.has(String(index + 1))) line.className = "is-wrong";
      return line;
    }),
  );
  gutter.scrollTop = area.scrollTop;
  area.onscroll = () => {
    gutter.scrollTop = area.scrollTop;
  };
}

export function goToLine(area, number) {
  const lines = area.value.split("\n");
  const from = lines.slice(0, number - 1).join("\n").length + (number > 1 ? 1 : 0);
  area.focus();
  area.setSelectionRange(from, from + (lines[number - 1] ?? "").length);
  area.scrollTop = (number - 4) * (area.scrollHeight / lines.length);
}

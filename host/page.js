"use strict";
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead th").forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => {
      const key = row => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace(/,/g, "").replace("−", "-"));
        return /^[-−\d]/.test(text) && !isNaN(number) && column ? number : text;
      };
      const up = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => typeof a === "number" && typeof b === "number"
        ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
      const body = table.tBodies[0];
      [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)))
        .forEach(row => body.append(row));
    }));
const data = JSON.parse(document.getElementById("data").textContent);
for (const image of document.querySelectorAll("img[data-map]")) {
  const run = data[image.dataset.run], rows = run.maps[image.dataset.map];
  const output = image.closest("figure").querySelector("output");
  image.addEventListener("pointermove", event => {
    const box = image.getBoundingClientRect();
    const at = (place, size, count) =>
      Math.max(0, Math.min(count - 1, Math.floor(place / size * count)));
    const y = at(event.clientY - box.top, box.height, rows.length);
    const x = at(event.clientX - box.left, box.width, rows[y].length);
    output.textContent = `${run.layers[y]}, step ${x}: ${rows[y][x]} %`;
  });
}

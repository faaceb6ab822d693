"use strict";
// Sorting and filtering of tables, values under the pointer, downloads. Without it the page has the same content.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const embedded = (selector) => JSON.parse(document.querySelector(selector)?.textContent ?? "{}");

// -- tables ----------------------------------------------------------------------------------------------------

// The number that a cell shows, otherwise its text. Nothing sorts last.
function valueOf(cell) {
  const text = (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  const number = parseFloat(text.replaceAll(",", "").replaceAll("\u2212", "-").replace(/^[<+]\s*/, ""));
  return text === "\u2013" ? "" : Number.isNaN(number) || !/^[-\u2212+<]?\s*[\d.]/.test(text) ? text : number;
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}

// The rows of a table in groups: a row that explains another stays below it.
function groupsOf(body) {
  const groups = [];
  for (const row of body.rows) {
    if (row.classList.contains("reason")) groups.at(-1).push(row);
    else groups.push([row]);
  }
  return groups;
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...[...table.tHead.rows].at(-1).cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", className: "sort", title: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const groups = groupsOf(body);
      const first = head.classList.contains("num") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keys = new Map(groups.map((group) => [group, valueOf(group[0].cells[column])]));
      groups.sort((a, b) => compare(keys.get(a), keys.get(b), sign));
      body.append(...groups.flat());
    });
  });
}

function makeFilterable(table) {
  const groups = groupsOf(table.tBodies[0]);
  const texts = groups.map((group) => group.map((row) => row.textContent).join(" ").toLowerCase());
  const count = make("output", { className: "small" });
  const field = make("input", { type: "search", placeholder: "filter rows", ariaLabel: "filter rows" });
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    groups.forEach((group, index) => {
      const fits = words.every((word) => texts[index].includes(word));
      for (const row of group) row.hidden = !fits;
      shown += fits;
    });
    count.textContent = words.length ? `${shown} of ${groups.length}` : "";
  });
  table.closest(".scroll").before(make("p", { className: "filter" }, field, " ", count));
}

for (const table of document.querySelectorAll("table.sortable")) {
  makeSortable(table);
  if (groupsOf(table.tBodies[0]).length > 5) makeFilterable(table);
}

// -- figures ---------------------------------------------------------------------------------------------------

const REACH = 28; // pixels from the pointer within which a value is shown
const tip = make("div", { className: "tip", hidden: true });
document.body.append(tip);

const inWords = (cell) =>
  typeof cell !== "number" || Number.isInteger(cell) ? String(cell) : String(Number(cell.toPrecision(4)));

function nearest(at, x, y) {
  let best = -1;
  let least = Infinity;
  for (let index = 0; index * 2 < at.length; index += 1) {
    const distance = Math.hypot(at[2 * index] - x, at[2 * index + 1] - y);
    if (distance < least) [best, least] = [index, distance];
  }
  return [best, least];
}

function showTip(event, columns, row) {
  const lines = columns.flatMap((column, index) =>
    row[index] === null ? [] : [make("div", {}, make("span", {}, `${column} `), inWords(row[index]))],
  );
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 6);
  const top = event.clientY + 18 + tip.offsetHeight > window.innerHeight ? -tip.offsetHeight - 12 : 18;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${event.clientY + top}px`;
}

function followPointer(svg, at, table) {
  const ring = document.createElementNS(svg.namespaceURI, "circle");
  ring.setAttribute("r", "5");
  ring.setAttribute("class", "ring");
  const hide = () => {
    tip.hidden = true;
    ring.remove();
  };
  const show = (event) => {
    const toSvg = svg.getScreenCTM().inverse();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(toSvg);
    const [index, distance] = nearest(at, x, y);
    if (index < 0 || distance > REACH * toSvg.a) return hide();
    ring.setAttribute("cx", at[2 * index]);
    ring.setAttribute("cy", at[2 * index + 1]);
    svg.append(ring);
    showTip(event, table.columns, table.rows[index]);
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

// -- downloads -------------------------------------------------------------------------------------------------

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function csvOf({ columns, rows }) {
  const cell = (value) => (/[",\n]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : (value ?? ""));
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

// The figure as a file of its own, in the colours of the light page.
function svgOf(svg, colours) {
  const copy = svg.cloneNode(true);
  for (const ring of copy.querySelectorAll(".ring")) ring.remove();
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("width", `${width}pt`);
  copy.setAttribute("height", `${height}pt`);
  const text = new XMLSerializer().serializeToString(copy);
  return text.replace(/var\((--[\w-]+)\)/g, (whole, name) => colours[name] ?? whole);
}

const colours = embedded("#colours");
const tables = {};
for (const script of document.querySelectorAll("script[data-table]")) {
  tables[script.dataset.table] = JSON.parse(script.textContent);
}
for (const figure of document.querySelectorAll("figure[data-table]")) {
  const svg = figure.querySelector("svg");
  const table = tables[figure.dataset.table];
  const button = (label, act) => {
    const element = make("button", { type: "button", textContent: label });
    element.addEventListener("click", act);
    return element;
  };
  const { name } = figure.dataset;
  const buttons = make("p", { className: "save" });
  buttons.append(button("SVG", () => save(`${name}.svg`, "image/svg+xml", svgOf(svg, colours))));
  if (table) {
    buttons.append(button("CSV", () => save(`${name}.csv`, "text/csv", csvOf(table))));
    followPointer(svg, figure.dataset.at.split(" ").map(Number), table);
  }
  figure.append(buttons);
}

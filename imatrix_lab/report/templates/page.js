"use strict";
(() => {
  const status = document.getElementById("status");
  const say = (words) => { status.textContent = words; };

  const value = (cell) => {
    const key = cell.dataset.sort ?? cell.textContent.trim();
    return key === "" ? null : key;
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  };

  // A third click brings the rows back into the order they came in.
  const ORDERS = { none: "ascending", ascending: "descending", descending: "none" };
  const sort = (table, head, column) => {
    const order = ORDERS[head.getAttribute("aria-sort") ?? "none"];
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (order !== "none") head.setAttribute("aria-sort", order);
    const sign = order === "descending" ? -1 : 1;
    const rows = [...table.originalRows];
    if (order !== "none") {
      rows.sort((one, other) => {
        const [a, b] = [value(one.cells[column]), value(other.cells[column])];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * compare(a, b);
      });
    }
    table.tBodies[0].append(...rows);
    say(order === "none" ? "In the first order" : `Sorted by ${head.textContent.trim()}, ${order}`);
  };

  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // pages opened from disk may lack the clipboard's newer interface
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    say("Copied");
    setTimeout(() => { button.textContent = before; }, 1500);
  };

  // Spreadsheets know the hyphen as a minus, and no line ends within a cell.
  const tsv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) =>
    cell.textContent.trim().replace(/\s+/g, " ").replace(/\u2212/g, "-")).join("\t")).join("\n");

  for (const table of document.querySelectorAll("table")) {
    table.originalRows = [...table.tBodies[0].rows];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => sort(table, head, column));
    });
    const tools = document.createElement("div");
    const button = document.createElement("button");
    tools.className = "tools";
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy as TSV";
    button.setAttribute("aria-label", `Copy as TSV: ${document.getElementById(table.getAttribute("aria-labelledby")).textContent}`);
    button.addEventListener("click", () => copy(tsv(table), button));
    tools.append(button);
    table.parentElement.after(tools);
  }
  for (const button of document.querySelectorAll(".copy-code")) {
    button.addEventListener("click", () => copy(button.nextElementSibling.textContent, button));
  }

  const unfold = document.getElementById("unfold");
  unfold.addEventListener("click", () => {
    const open = unfold.textContent.startsWith("Open");
    for (const part of document.querySelectorAll("details")) part.open = open;
    unfold.textContent = open ? "Close every part" : "Open every part";
  });

  // A link into a closed part opens it.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const part = target && target.closest("details");
    if (part) { part.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();

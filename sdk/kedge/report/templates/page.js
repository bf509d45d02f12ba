"use strict";
(() => {
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // What a row is sorted by: the figure behind a cell, or its text; null where there is neither.
  const key = (row, column, figures) => {
    const cell = row.cells[column];
    if (figures) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    return cell.textContent.trim() || null;
  };

  const sort = (table, column, order, figures) => {
    const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, key: key(row, column, figures) }));
    rows.sort((a, b) => {
      if (order === "none") return a.row.dataset.place - b.row.dataset.place;
      // What has no figure comes last, whichever way the others go.
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const by = figures ? a.key - b.key : words.compare(a.key, b.key);
      return order === "ascending" ? by : -by;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };

  for (const table of document.querySelectorAll("table[data-sort]")) {
    const rows = Array.from(table.tBodies[0].rows);
    if (rows.length < 2) continue;
    rows.forEach((row, place) => { row.dataset.place = place; });
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const figures = rows.some((row) => row.cells[column].dataset.value !== undefined);
      // Of figures the largest are asked for first; the third press brings back the order that the report chose.
      const orders = figures ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = orders[(orders.indexOf(head.getAttribute("aria-sort") ?? "none") + 1) % 3];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next !== "none") head.setAttribute("aria-sort", next);
        sort(table, column, next, figures);
      });
    });
  }

  // What is wider or higher than its place can be scrolled with the keyboard too.
  const reach = (box) => {
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => reach(target)));
  for (const box of document.querySelectorAll(".scroll, figure, pre")) sizes.observe(box);

  // Of what is drawn over time the newest stands at the right, and is asked for first.
  for (const drawn of document.querySelectorAll("figure.whole")) drawn.scrollLeft = drawn.scrollWidth;

  // On paper nothing can be opened.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
})();

"use strict";
// The page is whole without this. It adds sorting, filtering, and details that open for print.
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("sample-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];

  // A cell sorts by the record's number where it shows one, by its text otherwise; nothing found sorts last.
  const rows = [...body.rows].map((row) => ({
    row,
    text: row.textContent.toLowerCase(),
    standing: row.cells[row.cells.length - 1].textContent.trim(),
    keys: [...row.cells].map((cell) => {
      const data = cell.querySelector("data");
      if (data) return Number(data.value);
      const text = cell.textContent.trim();
      return cell.classList.contains("no") || text === "–" ? null : text;
    }),
  }));
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sort = (column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [a.keys[column], b.keys[column]];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * order(x, y);
    });
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    body.append(...rows.map((entry) => entry.row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
    });
    head.replaceChildren(button);
  });

  const find = byId("find");
  const standing = byId("standing");
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const entry of rows) {
      const kept = (!standing.value || entry.standing === standing.value) && words.every((word) => entry.text.includes(word));
      entry.row.hidden = !kept;
      count += kept;
    }
    byId("shown").textContent = `${count} of ${rows.length} shown`;
  };
  find.addEventListener("input", filter);
  standing.addEventListener("input", filter);
  const form = find.closest("form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));

  // The section being read is marked in the navigation.
  const nav = document.querySelector("nav");
  const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(entry.target.id);
      else seen.delete(entry.target.id);
    }
    const first = [...links.keys()].find((id) => seen.has(id));
    for (const [id, link] of links) {
      if (id === first) {
        link.setAttribute("aria-current", "true");
        nav.scrollLeft = link.offsetLeft - 16;  // on a narrow screen the navigation is a strip that scrolls
      } else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-12% 0px -60% 0px" });
  links.forEach((_, id) => watch.observe(byId(id)));
})();
